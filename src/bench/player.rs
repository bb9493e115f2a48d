//! Plays a plan into one gateway: every conversation is a user of its own who asks when it is time.
//!
//! Arrivals are an open loop: nobody waits for anybody else's answer. Only a conversation waits for its own: the next
//! question carries the last answer, so it leaves when it is due or, if the answer is late, right after it. Its time
//! to first token counts from there, to the favour of the slower gateway.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::sleep_until;

use super::{Client, Conversation, Plan, Tally};
use crate::{clock, tasks::Tasks};

/// Those who play a plan into one gateway.
#[derive(Clone, Debug)]
pub struct Player {
    /// Their way to it.
    pub client: Arc<Client>,
    /// The model they ask for.
    pub model: Arc<str>,
    /// Where it is noted what they felt.
    pub tally: Arc<Tally>,
}

impl Player {
    /// Starts every conversation of the plan on `tasks`, the plan's zero at `start`. All have ended when `tasks` has;
    /// stopping `tasks` gives up those that have not.
    pub fn play(&self, plan: &Arc<Plan>, start: Instant, tasks: &Tasks) {
        for at in 0..plan.conversations.len() {
            let (player, plan) = (self.clone(), Arc::clone(plan));
            tasks.spawn_until_stop(async move {
                if let Some(conversation) = plan.conversations.get(at) {
                    player.converse(conversation, start).await;
                }
            });
        }
    }

    async fn converse(&self, conversation: &Conversation, start: Instant) {
        let mut messages = vec![message("system", &conversation.instructions)];
        for turn in &conversation.turns {
            self.wait_until(start + turn.due).await;
            messages.push(message("user", &turn.question));
            let body = self.body(&messages, turn.answer_tokens);
            let mut open = self.tally.begin(clock::now());
            let answer = self.client.chat(body, |seen, now| open.saw(seen, now)).await;
            open.close(&answer.timeline, &answer.outcome);
            // After a failure the user goes on with what there is, so that both gateways are asked as often.
            messages.push(message("assistant", &answer.text));
        }
    }

    async fn wait_until(&self, due: Instant) {
        let early = clock::now() < due;
        sleep_until(due.into()).await;
        // A question that had to wait for an answer is late for another reason.
        if early {
            self.tally.late(clock::now().saturating_duration_since(due));
        }
    }

    fn body(&self, messages: &[Value], answer_tokens: u32) -> Bytes {
        let body = json!({
            "model": &*self.model,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": answer_tokens,
        });
        body.to_string().into()
    }
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;
    use crate::{
        bench::{Kind, Shape},
        sim::{Pod, PodConfig},
    };

    #[tokio::test]
    async fn the_next_turn_carries_the_answer_so_that_the_cache_knows_it() {
        let tasks = Tasks::new();
        let config = PodConfig::new("m").time_scale(0.01);
        let pod = Pod::start(config, (Ipv4Addr::LOCALHOST, 0).into(), &tasks).await.unwrap();
        let kind =
            Kind { cards: 1, question: 320..=320, follow_up: 16..=16, answer: 32..=32, turns: 2..=2, pause: 0.1..=0.2 };
        let shape = Shape {
            length: Duration::from_secs(1),
            per_second: 3.0,
            period: Duration::from_millis(200),
            burst: Duration::from_millis(10),
            burst_share: 0.5,
            instructions: vec![160],
            kinds: vec![kind],
        };
        let plan = Arc::new(Plan::draw(7, &shape));
        let player = Player {
            client: Arc::new(Client::new(pod.addr(), tasks.clone())),
            model: "m".into(),
            tally: Arc::default(),
        };
        let playing = Tasks::new();
        player.play(&plan, clock::now(), &playing);
        playing.wait().await;
        let figures = player.tally.figures();
        let second_turns = plan.requests() - plan.conversations.len();
        assert_eq!(figures.done, plan.requests() as u64, "{figures:?}");
        assert!(figures.lateness.is_some(), "{figures:?}");
        // At least 500 of a second turn's tokens were said before: the instructions, the question and the answer.
        assert!(figures.cached_tokens >= 500 * second_turns as u64, "{figures:?}");
        tasks.stop();
        tasks.wait().await;
    }
}
