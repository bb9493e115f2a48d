//! W5, W6 and W7: so many users at once, each of whom asks again when it has its answer and has thought about it.
//!
//! A session's questions carry all that was said before, its answers too. Whoever ends a session begins another, so
//! that there are always as many users; how far they get depends on who serves them.

use std::ops::RangeInclusive;

use rand::{Rng, RngExt as _};

use crate::lab::{
    draws,
    script::{Ask, Client, Next, Piece},
};

/// No engine answers faster, so no user needs a longer script: the step of a lone request on the fastest profile.
const FASTEST_TOKEN_MS: f64 = 4.0;

/// Users do not all come in the same second.
const ARRIVE_WITHIN_MS: f64 = 30_000.0;

/// A quantity: log-normal with this mean and deviation.
type Lot = (f64, f64);

/// What sessions are like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Tokens that all sessions begin with.
    shared: u32,
    context: Context,
    turns: Turns,
    question: Lot,
    answer: Answer,
    /// Seconds between an answer and the next question.
    think: Option<Lot>,
}

/// Tokens that a session begins with after those, its own.
#[derive(Clone, Debug)]
enum Context {
    None,
    Uniform(RangeInclusive<u32>),
    LogNormal(Lot),
}

#[derive(Clone, Debug)]
enum Turns {
    Uniform(RangeInclusive<u32>),
    LogNormal(Lot),
}

#[derive(Clone, Debug)]
enum Answer {
    Exactly(u32),
    LogNormal(Lot),
    Normal(Lot),
}

impl Shape {
    /// W5: agents.
    pub(super) const AGENTIC: Self = Self {
        shared: 3_000,
        context: Context::Uniform(15_000..=100_000),
        turns: Turns::Uniform(2..=20),
        question: (1_500.0, 1_200.0),
        answer: Answer::LogNormal((800.0, 600.0)),
        think: None,
    };

    /// W6: reasoning.
    pub(super) const REASONING: Self = Self {
        shared: 250,
        context: Context::None,
        turns: Turns::Uniform(1..=1),
        question: (1_000.0, 0.0),
        answer: Answer::Exactly(8_000),
        think: None,
    };

    /// W7: people.
    pub(super) const INTERACTIVE: Self = Self {
        shared: 1_000,
        context: Context::LogNormal((4_000.0, 2_500.0)),
        turns: Turns::LogNormal((4.0, 2.5)),
        question: (50.0, 40.0),
        answer: Answer::Normal((300.0, 150.0)),
        think: Some((45.0, 40.0)),
    };

    /// So many users for so long.
    pub(super) fn script(&self, users: u32, length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
        let system = Piece { content: rng.random(), tokens: self.shared };
        let mut asks: Vec<Ask> = Vec::new();
        for _ in 0..users {
            let mut at_ms = rng.random::<f64>() * ARRIVE_WITHIN_MS.min(length_ms);
            let mut first = true;
            while at_ms < length_ms {
                at_ms = self.session(&mut asks, system, (at_ms, first), rng);
                first = false;
            }
        }
        asks
    }

    /// Appends a session to the user whose last request stands at the end; the first begins at its time, and every
    /// other follows the one before. Returns when it will be over at the earliest.
    fn session(&self, asks: &mut Vec<Ask>, system: Piece, (mut at_ms, first): (f64, bool), rng: &mut impl Rng) -> f64 {
        let session: u64 = rng.random();
        let mut said = vec![system];
        said.extend(self.context(rng));
        for turn in 0..self.turns(rng) {
            let pause_ms = self.pause_ms(rng);
            let follows = !first || turn > 0;
            let question = draws::tokens(lot(self.question, rng));
            said.push(Piece { content: rng.random(), tokens: question });
            let answer = Piece { content: rng.random(), tokens: self.answer(rng) };
            let nth = u32::try_from(asks.len()).unwrap_or(u32::MAX);
            if let Some(before) = asks.last_mut().filter(|_| follows) {
                before.next = Some(Next { ask: nth, pause_ms });
                at_ms += pause_ms;
            }
            asks.push(Ask {
                at_ms: if follows { f64::INFINITY } else { at_ms },
                prompt: said.as_slice().into(),
                answer,
                adapter: None,
                session: Some(session),
                next: None,
                client: Client::default(),
            });
            at_ms += f64::from(answer.tokens) * FASTEST_TOKEN_MS;
            said.push(answer);
        }
        at_ms
    }

    fn context(&self, rng: &mut impl Rng) -> Option<Piece> {
        let tokens = match &self.context {
            Context::None => return None,
            Context::Uniform(range) => rng.random_range(range.clone()),
            Context::LogNormal(of) => draws::tokens(lot(*of, rng)),
        };
        Some(Piece { content: rng.random(), tokens })
    }

    fn turns(&self, rng: &mut impl Rng) -> u32 {
        match &self.turns {
            Turns::Uniform(range) => rng.random_range(range.clone()),
            Turns::LogNormal(of) => draws::tokens(lot(*of, rng)),
        }
    }

    fn answer(&self, rng: &mut impl Rng) -> u32 {
        match self.answer {
            Answer::Exactly(tokens) => tokens,
            Answer::LogNormal(of) => draws::tokens(lot(of, rng)),
            Answer::Normal((mean, deviation)) => draws::tokens(mean + deviation * draws::normal(rng)),
        }
    }

    fn pause_ms(&self, rng: &mut impl Rng) -> f64 {
        self.think.map_or(0.0, |of| lot(of, rng) * 1e3)
    }
}

fn lot((mean, deviation): Lot, rng: &mut impl Rng) -> f64 {
    if deviation > 0.0 { draws::log_normal(mean, deviation, rng) } else { mean }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn every_user_begins_once_and_each_question_carries_what_was_said() {
        let asks = Shape::INTERACTIVE.script(10, 600_000.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(asks.iter().filter(|ask| ask.at_ms.is_finite()).count(), 10);
        let mut turns = 0;
        for (before, next) in asks.iter().filter_map(|ask| Some((ask, &asks[ask.next?.ask as usize]))) {
            if before.session == next.session {
                let (said, rest) = next.prompt.split_at(before.prompt.len());
                assert_eq!((said, rest[0], rest.len()), (&*before.prompt, before.answer, 2));
                turns += 1;
            } else {
                assert_eq!(before.prompt[0], next.prompt[0], "the system prompt is everybody's");
                assert_ne!(before.prompt[1], next.prompt[1]);
            }
        }
        assert!(turns > 50, "{turns}");
    }

    #[test]
    fn there_are_questions_until_the_end_for_the_fastest_engine() {
        for shape in [Shape::AGENTIC, Shape::REASONING, Shape::INTERACTIVE] {
            let asks = shape.script(1, 600_000.0, &mut StdRng::seed_from_u64(2));
            let answers: f64 = asks.iter().map(|ask| f64::from(ask.answer.tokens) * FASTEST_TOKEN_MS).sum();
            let pauses: f64 = asks.iter().filter_map(|ask| ask.next).map(|next| next.pause_ms).sum();
            assert!(answers + pauses + ARRIVE_WITHIN_MS >= 600_000.0, "{shape:?}");
        }
    }
}
