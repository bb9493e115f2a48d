//! Who will ask what and when, drawn from a seed before anything is sent.
//!
//! Arrivals come in bursts: each period has one, at a place of its own, on top of an even rain. Kinds of conversations
//! are dealt from a shuffled deck. So a seed decides about order and coincidence, which is what queues are made of, and
//! not about how much work there is: two seeds are two days of the same service.

use std::{ops::RangeInclusive, time::Duration};

use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// Bytes of text for one token: what common tokenizers take English to be, and what the simulated pods count.
const BYTES_PER_TOKEN: usize = 4;

/// Words to write prompts with; what they say matters to nobody.
const WORDS: [&str; 24] = [
    "tide", "gate", "harbour", "signal", "queue", "river", "lantern", "the", "of", "and", "under", "beyond", "north",
    "crane", "ferry", "cargo", "pilot", "a", "keeps", "carries", "meets", "counts", "slow", "bright",
];

/// What conversations there shall be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How long new ones begin, and turns come.
    pub length: Duration,
    /// How many begin in a second, on average.
    pub per_second: f64,
    /// Each period has one burst.
    pub period: Duration,
    /// How long a burst is.
    pub burst: Duration,
    /// The share of a period's conversations that begins in its burst.
    pub burst_share: f64,
    /// Lengths in tokens of the instructions that conversations share.
    pub instructions: Vec<u32>,
    /// The kinds in the deck.
    pub kinds: Vec<Kind>,
}

/// A kind of conversation.
#[derive(Clone, Debug)]
pub struct Kind {
    /// How many of these are in the deck.
    pub cards: usize,
    /// Tokens of the first question.
    pub question: RangeInclusive<u32>,
    /// Tokens of each later one.
    pub follow_up: RangeInclusive<u32>,
    /// Tokens of each answer.
    pub answer: RangeInclusive<u32>,
    /// Questions altogether.
    pub turns: RangeInclusive<u32>,
    /// Seconds from one question to the next: the answer's time, reading it, and typing.
    pub pause: RangeInclusive<f64>,
}

/// Everything that will be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order in which they begin.
    pub conversations: Vec<Conversation>,
}

/// One conversation; each question carries all that was said before.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The instructions it begins with.
    pub instructions: String,
    /// Its questions, in order; at least one.
    pub turns: Vec<Turn>,
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// When it is due, from the start of the plan.
    pub due: Duration,
    /// What is asked.
    pub question: String,
    /// How long the answer is to be, in tokens.
    pub answer_tokens: u32,
}

impl Plan {
    /// The plan that `seed` draws.
    pub fn draw(seed: u64, shape: &Shape) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let instructions: Vec<String> = shape.instructions.iter().map(|&tokens| text(tokens, &mut rng)).collect();
        let mut deck = Deck::default();
        let begins = begins(shape, &mut rng);
        let conversation = |begins: Duration| {
            let kind = deck.deal(&shape.kinds, &mut rng)?;
            let shared = rng.random_range(0..instructions.len().max(1));
            Some(Conversation {
                instructions: instructions.get(shared).cloned().unwrap_or_default(),
                turns: turns(kind, begins, shape.length, &mut rng),
            })
        };
        Self { conversations: begins.into_iter().map_while(conversation).collect() }
    }

    /// How many requests it will take.
    pub fn requests(&self) -> usize {
        self.conversations.iter().map(|it| it.turns.len()).sum()
    }
}

/// When conversations begin: for each period as many as it is due, some together in its burst, the others anywhere.
fn begins(shape: &Shape, rng: &mut impl Rng) -> Vec<Duration> {
    let (length, period) = (shape.length.as_secs_f64(), shape.period.as_secs_f64());
    let burst = shape.burst.as_secs_f64().min(period);
    let mut all = Vec::new();
    let mut from = 0.0;
    while from < length && period > 0.0 {
        let burst_from = from + rng.random::<f64>() * (period - burst);
        // What is due so far, so that a fraction of a conversation is not lost in each period.
        while (all.len() as f64) < shape.per_second * (from + period) {
            let at = if rng.random::<f64>() < shape.burst_share {
                burst_from + rng.random::<f64>() * burst
            } else {
                from + rng.random::<f64>() * period
            };
            all.push(at);
        }
        from += period;
    }
    all.retain(|&at| at < length);
    all.sort_unstable_by(f64::total_cmp);
    all.into_iter().map(Duration::from_secs_f64).collect()
}

fn turns(kind: &Kind, begins: Duration, length: Duration, rng: &mut impl Rng) -> Vec<Turn> {
    let mut due = begins;
    let mut turns = Vec::new();
    for nth in 0..rng.random_range(kind.turns.clone()).max(1) {
        let range = if nth == 0 { &kind.question } else { &kind.follow_up };
        let tokens = rng.random_range(range.clone());
        turns.push(Turn {
            due,
            question: text(tokens, rng),
            answer_tokens: rng.random_range(kind.answer.clone()).max(1),
        });
        due += Duration::from_secs_f64(rng.random_range(kind.pause.clone()));
        if due >= length {
            break;
        }
    }
    turns
}

/// Cards that say which kind comes next; shuffled anew when all are dealt.
#[derive(Debug, Default)]
struct Deck(Vec<usize>);

impl Deck {
    fn deal<'a>(&mut self, kinds: &'a [Kind], rng: &mut impl Rng) -> Option<&'a Kind> {
        if self.0.is_empty() {
            let cards = kinds.iter().enumerate().flat_map(|(at, kind)| std::iter::repeat_n(at, kind.cards));
            self.0.extend(cards);
            self.0.shuffle(rng);
        }
        kinds.get(self.0.pop()?)
    }
}

/// Words worth so many tokens.
fn text(tokens: u32, rng: &mut impl Rng) -> String {
    let bytes = tokens as usize * BYTES_PER_TOKEN;
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        text.push_str(WORDS.get(rng.random_range(0..WORDS.len())).copied().unwrap_or("tide"));
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        let kind = |cards, question: u32, turns| Kind {
            cards,
            question: question..=question * 2,
            follow_up: 10..=20,
            answer: 5..=9,
            turns,
            pause: 1.0..=3.0,
        };
        Shape {
            length: Duration::from_secs(20),
            per_second: 7.0,
            period: Duration::from_secs(4),
            burst: Duration::from_millis(500),
            burst_share: 0.5,
            instructions: vec![100, 50],
            kinds: vec![kind(5, 50, 1..=4), kind(2, 400, 1..=1)],
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_plan_and_another_another() {
        assert_eq!(Plan::draw(1, &shape()), Plan::draw(1, &shape()));
        assert_ne!(Plan::draw(1, &shape()), Plan::draw(2, &shape()));
    }

    #[test]
    fn every_seed_draws_the_same_amount_of_work() {
        for seed in 0..20 {
            let plan = Plan::draw(seed, &shape());
            assert_eq!(plan.conversations.len(), 140);
            let large = |it: &&Conversation| it.turns[0].question.len() >= 1_600;
            assert_eq!(plan.conversations.iter().filter(large).count(), 40, "seed {seed}");
        }
    }

    #[test]
    fn half_a_second_of_each_period_has_more_than_its_share() {
        let plan = Plan::draw(3, &shape());
        let mut fullest = [0_usize; 5];
        for (period, fullest) in fullest.iter_mut().enumerate() {
            for window in 0..36 {
                let from = Duration::from_millis(period as u64 * 4_000 + window * 100);
                let within = from..from + Duration::from_millis(500);
                let inside = plan.conversations.iter().filter(|it| within.contains(&it.turns[0].due));
                *fullest = (*fullest).max(inside.count());
            }
        }
        // 28 in each period: half of them, 14, in the burst; an even rain would bring 3.5 into any half second.
        assert!(fullest.iter().all(|&count| count >= 9), "{fullest:?}");
    }

    #[test]
    fn turns_come_in_order_and_none_after_the_end() {
        let plan = Plan::draw(4, &shape());
        for conversation in &plan.conversations {
            assert!(conversation.turns.is_sorted_by_key(|turn| turn.due));
            assert!(conversation.turns.iter().all(|turn| turn.due < Duration::from_secs(20)));
            assert!((1..=4).contains(&conversation.turns.len()));
        }
        let turns: usize = plan.conversations.iter().map(|it| it.turns.len()).sum();
        assert_eq!(plan.requests(), turns);
        assert!(turns > plan.conversations.len());
    }

    #[test]
    fn a_shape_without_kinds_or_time_draws_nothing() {
        let empty = Shape { kinds: Vec::new(), ..shape() };
        assert_eq!(Plan::draw(1, &empty).requests(), 0);
        let short = Shape { length: Duration::ZERO, ..shape() };
        assert_eq!(Plan::draw(1, &short).requests(), 0);
    }
}
