//! One request's course through a pod: its place there, and what its answer teaches about the pod and its pool.
//!
//! Whoever carries a request tells it what happens and when; what follows from that for ledger and speed is decided
//! here alone. Dropping it gives the place back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Pod, PoolState, Reservation, Send, speed::Of};

/// Tokens after which a stream's pace is learned: a second or two, so that a stream of an hour does not teach only when
/// it is over.
const LESSON_TOKENS: u32 = 64;

/// Fewer tokens than this at a stream's end teach nothing: their mean is mostly chance.
const LEAST_TOKENS: u32 = 8;

/// The least share of a stream's time that was decoding: prefills at the edges may be counted whole.
const LEAST_DECODING: f64 = 0.1;

/// A request on a pod.
#[derive(Debug)]
pub struct Course {
    pool: Arc<PoolState>,
    reservation: Reservation,
    tokens_ahead: f64,
    sent: Instant,
    lesson: Option<Lesson>,
    tokens: u32,
}

/// Some tokens of a stream, from one that was seen to another.
#[derive(Clone, Copy, Debug)]
struct Lesson {
    began: Instant,
    tokens: u32,
    streams: f64,
    /// Prompt tokens that the pod had computed for us when it began.
    prefilled: u64,
}

impl Course {
    /// Counts the request in. Call it under the pool's gate, right after the pick, so that simultaneous picks see
    /// each other.
    pub fn begin(pool: &Arc<PoolState>, pod: &Arc<Pod>, send: Send, now: Instant) -> Self {
        let tokens_ahead = pod.ledger.prefill_tokens() as f64 + f64::from(send.uncached_tokens);
        pod.inflow.add(send.uncached_tokens, now);
        pool.count(pod, now);
        let reservation = Reservation::new(Arc::clone(pod), send);
        Self { pool: Arc::clone(pool), reservation, tokens_ahead, sent: now, lesson: None, tokens: 0 }
    }

    /// The pod.
    pub fn pod(&self) -> &Arc<Pod> {
        self.reservation.pod()
    }

    /// A piece of the answer came.
    pub fn heard(&self) {
        self.reservation.heard();
    }

    /// Its prompt no longer stands in anybody's way, though no token was seen.
    pub fn first_token(&mut self) {
        self.reservation.first_token();
    }

    /// It left for the pod.
    pub fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// When it left for the pod.
    pub fn sent_at(&self) -> Instant {
        self.sent
    }

    /// When its first token is due after it was sent, by the speed that the pod has shown.
    pub fn first_token_due(&self) -> Duration {
        let pace = self.pod().speed.pace(self.pool.pace());
        Duration::try_from_secs_f64((pace.base_ms + self.tokens_ahead * pace.ms_per_token) / 1e3).unwrap_or_default()
    }

    /// `tokens` more came. Returns whether they are the first.
    pub fn tokens(&mut self, tokens: u32, now: Instant) -> bool {
        if tokens == 0 {
            return false;
        }
        let first = self.tokens == 0;
        if first {
            self.reservation.first_token();
            self.pod().health.accepted(self.sent);
            let ttft_ms = millis(now.saturating_duration_since(self.sent));
            self.pool.speed.learn(&self.pod().speed, Of::Prefill, (self.tokens_ahead, ttft_ms), now);
            self.lesson = Some(self.new_lesson(now));
        } else if let Some(lesson) = &mut self.lesson {
            lesson.tokens += tokens;
            lesson.streams += f64::from(tokens) * self.reservation.pod().ledger.in_flight() as f64;
            if lesson.tokens >= LESSON_TOKENS {
                self.learn_decoding(now);
                self.lesson = Some(self.new_lesson(now));
            }
        }
        self.reservation.generated(tokens);
        self.tokens = self.tokens.saturating_add(tokens);
        first
    }

    /// The answer is complete: `prompt_bytes` of text were `prompt_tokens`, and it had so many tokens, where it said so.
    pub fn complete(&mut self, prompt_bytes: usize, prompt_tokens: Option<u32>, output: Option<u32>, now: Instant) {
        if self.lesson.is_some_and(|lesson| lesson.tokens >= LEAST_TOKENS) {
            self.learn_decoding(now);
        }
        self.lesson = None;
        self.pod().health.accepted(self.sent);
        if let Some(tokens) = output.or(Some(self.tokens)).filter(|tokens| *tokens > 0) {
            self.pool.learn_output_tokens(tokens);
        }
        if let Some(tokens) = prompt_tokens {
            self.pool.learn_bytes_per_token(prompt_bytes, tokens);
        }
    }

    fn new_lesson(&self, now: Instant) -> Lesson {
        Lesson { began: now, tokens: 0, streams: 0.0, prefilled: self.pod().ledger.prefilled() }
    }

    /// The time between tokens less the prefills that took their part of it: what the steps of decoding took.
    fn learn_decoding(&self, now: Instant) {
        let Some(lesson) = self.lesson.filter(|lesson| lesson.tokens > 0) else { return };
        let pod = self.pod();
        let prefilled = pod.ledger.prefilled().saturating_sub(lesson.prefilled) as f64;
        let whole = millis(now.saturating_duration_since(lesson.began));
        let prefills = prefilled * pod.speed.pace(self.pool.pace()).ms_per_token;
        let tokens = f64::from(lesson.tokens);
        let step_ms = (whole - prefills).max(whole * LEAST_DECODING) / tokens;
        self.pool.speed.learn(&pod.speed, Of::Decode, (lesson.streams / tokens, step_ms), now);
    }
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Fleet, Pace, for_test};

    fn alone(now: Instant) -> (Arc<PoolState>, Arc<Pod>) {
        let fleet = Fleet::new(&[for_test::pool("pool")], now);
        fleet.set("pool", &[for_test::target("a")], now);
        let pool = fleet.pool("pool").unwrap();
        let pod = Arc::clone(&pool.pods()[0]);
        (pool, pod)
    }

    fn sent(pool: &Arc<PoolState>, pod: &Arc<Pod>, tokens: u32, now: Instant) -> Course {
        Course::begin(pool, pod, Send { prompt_tokens: tokens, uncached_tokens: tokens }, now)
    }

    #[test]
    fn a_first_token_teaches_what_was_ahead_and_is_due_when_that_is_computed() {
        let start = crate::clock::now();
        let (pool, pod) = alone(start);
        let _ahead = sent(&pool, &pod, 1_000, start);
        let mut course = sent(&pool, &pod, 600, start);
        // What is taken for granted: 20 ms and 0.05 a token.
        assert_eq!(course.first_token_due().as_millis(), 100);
        course.sent(start + Duration::from_millis(5));
        course.tokens(1, start + Duration::from_millis(205));
        let pace = pod.speed.pace(pool.pace());
        assert!((pace.base_ms + 1_600.0 * pace.ms_per_token - 150.0).abs() < 25.0, "half 100, half 200: {pace:?}");
        assert_eq!((pod.ledger.unstarted(), pod.ledger.prefill_tokens(), pod.ledger.prefilled()), (1, 1_000, 600));
        drop(course);
        assert_eq!((pod.ledger.in_flight(), pod.ledger.kv_tokens()), (1, 1_000));
    }

    #[test]
    fn a_stream_teaches_its_steps_without_the_prefills_between_them_even_before_it_ends() {
        let start = crate::clock::now();
        let (pool, pod) = alone(start);
        // Prefills of 0.1 ms a token and steps of 10 ms, so well known that one answer changes little.
        pool.speed.assume(Pace { base_ms: 0.0, ms_per_token: 0.1, step_ms: 10.0, stream_ms: 0.0 });
        let mut course = sent(&pool, &pod, 1_000, start);
        let first = start + Duration::from_millis(100);
        course.tokens(1, first);
        // Each time 64 tokens in 640 ms and the 200 ms of another's prefill.
        for round in 0..8u32 {
            let mut other = sent(&pool, &pod, 2_000, first);
            other.first_token();
            let before = pool.speed.pace();
            for n in 1..=64u32 {
                course.tokens(1, first + Duration::from_micros(13_125) * (round * 64 + n));
            }
            assert_ne!(before, pool.speed.pace(), "64 tokens are a lesson");
        }
        let itl_ms = pod.speed.pace(pool.speed.pace()).itl_ms(2.0);
        assert!((9.5..11.5).contains(&itl_ms), "{itl_ms}");
    }

    #[test]
    fn a_first_token_takes_a_no_back_unless_it_was_sent_before() {
        let start = crate::clock::now();
        let (pool, pod) = alone(start);
        let mut early = sent(&pool, &pod, 100, start);
        let refused = start + Duration::from_millis(10);
        pod.health.pushed_back(None, start, refused);
        early.tokens(1, start + Duration::from_millis(20));
        assert!(pod.health.pushback(refused) > Duration::ZERO, "it was taken before there was no room");
        let later = start + Duration::from_millis(30);
        let mut late = sent(&pool, &pod, 100, later);
        late.tokens(1, later);
        assert_eq!(pod.health.pushback(later), Duration::ZERO);
    }

    #[test]
    fn a_whole_answer_frees_its_prefill_when_it_is_due_and_teaches_sizes_alone() {
        let start = crate::clock::now();
        let (pool, pod) = alone(start);
        let mut course = sent(&pool, &pod, 500, start);
        course.first_token();
        assert_eq!((pod.ledger.unstarted(), pod.ledger.in_flight()), (0, 1));
        let (before, pace) = (pool.expected_output_tokens(), pool.pace());
        course.complete(2_000, Some(500), Some(10_000), start + Duration::from_secs(1));
        assert!(pool.expected_output_tokens() > before);
        assert_eq!(pool.pace(), pace);
    }
}
