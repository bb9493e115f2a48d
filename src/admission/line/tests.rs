//! The line alone, on a clock that does not run.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::config::{Bytes, Ratio, Share};

fn terms(requests: usize) -> Waiting {
    Waiting {
        timeout: Duration::from_secs(30),
        first_token: None,
        requests,
        bytes: Bytes(1 << 30),
        tenant_requests: requests,
        tenant_bytes: Bytes(1 << 30),
        shares: [].into(),
        evict_sheddable: false,
    }
}

fn entry(tenant: &str, priority: i32, tokens: u32, due: Instant) -> Entry<&'static str> {
    Entry { pool: "pool".into(), lane: "m", tenant: tenant.into(), priority, tokens, bytes: 1, due }
}

fn numbers(pushed_out: Vec<(Id, Entry<&'static str>)>) -> Vec<Id> {
    pushed_out.into_iter().map(|(id, _)| id).collect()
}

/// A line at an instant that does not pass.
struct Play {
    line: Line<&'static str>,
    terms: Waiting,
    now: Instant,
}

impl Play {
    fn new() -> Self {
        Self { line: Line::default(), terms: terms(100_000), now: crate::clock::now() }
    }

    fn at(&self, secs: u64) -> Instant {
        self.now + Duration::from_secs(secs)
    }

    fn comes(&mut self, tenant: &str, priority: i32, tokens: u32) -> Id {
        self.enters(entry(tenant, priority, tokens, self.at(30)))
    }

    fn come(&mut self, many: usize, tenant: &str, priority: i32, tokens: u32) {
        for _ in 0..many {
            self.comes(tenant, priority, tokens);
        }
    }

    fn enters(&mut self, entry: Entry<&'static str>) -> Id {
        self.line.enter(entry, &self.terms, self.now).unwrap().id
    }

    fn serve(&mut self) -> Option<Entry<&'static str>> {
        let id = self.line.next("pool", |_| true)?;
        self.line.take(id, self.now)
    }

    /// Tokens that each tenant is served among the first `tokens` or so.
    fn served(&mut self, tokens: u64) -> BTreeMap<Arc<str>, u64> {
        let mut by_tenant = BTreeMap::new();
        while by_tenant.values().sum::<u64>() < tokens {
            let Some(entry) = self.serve() else { break };
            *by_tenant.entry(entry.tenant).or_default() += u64::from(entry.tokens);
        }
        by_tenant
    }
}

#[test]
fn a_higher_priority_comes_first_and_the_first_come_of_a_tenant() {
    let mut play = Play::new();
    let came = [0, -1, 5, 0, 5].map(|priority| play.comes("a", priority, 10));
    let order: Vec<_> = std::iter::from_fn(|| {
        let id = play.line.next("pool", |_| true)?;
        play.line.take(id, play.now)?;
        Some(id)
    })
    .collect();
    assert_eq!(order, [came[2], came[4], came[0], came[3], came[1]]);
}

#[test]
fn within_a_tenant_who_is_due_first_comes_first_and_others_come_as_they_came() {
    let mut play = Play::new();
    let slow = play.comes("a", 0, 10);
    let also_slow = play.comes("a", 0, 10);
    let hurried = play.enters(entry("a", 0, 10, play.at(2)));
    let others = play.comes("b", 0, 10);
    let mut served = Vec::new();
    while let Some(id) = play.line.next("pool", |_| true) {
        play.line.take(id, play.now);
        served.push(id);
    }
    assert_eq!(served, [hurried, slow, also_slow, others], "and hurry does not cost another tenant its turn");
}

#[test]
fn two_tenants_of_which_one_asks_ten_times_as_much_get_the_same() {
    let mut play = Play::new();
    for nth in 0..11_000 {
        play.comes(if nth % 11 == 0 { "little" } else { "much" }, 0, 700);
    }
    let served = play.served(1_000_000);
    let (little, much) = (served["little"] as f64, served["much"] as f64);
    assert!((little / much - 1.0).abs() < 0.01, "{served:?}");
}

#[test]
fn a_tenant_of_large_requests_gets_as_many_tokens_as_one_of_small_ones_and_no_more() {
    let mut play = Play::new();
    play.come(20, "large", 0, 100_000);
    play.come(20_000, "small", 0, 100);
    let served = play.served(2_000_000);
    assert!(served["large"].abs_diff(served["small"]) <= 100_000, "within one request: {served:?}");
}

#[test]
fn who_asks_little_is_served_next_however_long_the_others_lines_are() {
    let mut play = Play::new();
    for tenant in ["a", "b", "c"] {
        play.come(1_000, tenant, 0, 500);
    }
    play.served(100_000);
    for _ in 0..20 {
        let light = play.comes("light", 0, 500);
        let mut before = 0;
        while let Some(id) = play.line.next("pool", |_| true).filter(|id| *id != light) {
            play.line.take(id, play.now);
            before += 1;
        }
        assert!(before <= 6, "two of each of the others at most: {before}");
        play.line.take(light, play.now);
        play.served(10_000);
    }
}

#[test]
fn who_comes_back_for_every_turn_gets_no_more_than_who_stays() {
    let mut play = Play::new();
    play.come(5_000, "stays", 0, 1_000);
    // One at a time, and always one.
    let mut comes = 0u64;
    play.comes("comes", 0, 20_000);
    for _ in 0..1_000 {
        let entry = play.serve().unwrap();
        if &*entry.tenant == "comes" {
            comes += 20_000;
            play.comes("comes", 0, 20_000);
        }
    }
    let stays = 1_000 * (1_000 - comes / 20_000);
    assert!(comes.abs_diff(stays) <= 21_000, "{comes} {stays}");
}

#[test]
fn a_lower_priority_gets_the_share_that_it_is_guaranteed_and_no_more() {
    let mut play = Play::new();
    play.terms.shares = [Share { priority: -1, share: Ratio(0.1) }].into();
    for _ in 0..5_000 {
        play.comes("vip", 1, 1_000);
        play.comes("batch", -1, 300);
    }
    let served = play.served(1_000_000);
    let share = served["batch"] as f64 / 1_000_000.0;
    assert!((0.095..0.105).contains(&share), "{served:?}");
    let mut without = Play::new();
    for _ in 0..200 {
        without.comes("vip", 1, 1_000);
        without.comes("batch", -1, 300);
    }
    assert!(!without.served(200_000).contains_key("batch"), "strict else");
}

#[test]
fn nobody_waits_behind_one_who_waits_for_something_else() {
    let mut play = Play::new();
    let mut other = entry("a", 9, 10, play.at(1));
    other.lane = "other";
    let first = play.enters(other);
    let second = play.comes("a", 0, 10);
    let third = play.comes("b", -1, 10);
    assert_eq!(play.line.next("pool", |lane| *lane == "m"), Some(second));
    assert_eq!(play.line.next("pool", |_| true), Some(first));
    play.line.take(second, play.now);
    assert_eq!(play.line.next("pool", |lane| *lane == "m"), Some(third));
    let mut asked = Vec::new();
    assert_eq!(
        play.line.next("pool", |lane| {
            asked.push(*lane);
            false
        }),
        None
    );
    assert_eq!(asked, ["other", "m"], "each lane is asked about once");
    assert_eq!(play.line.next("elsewhere", |_| true), None);
}

#[test]
fn a_full_line_lets_in_who_matters_more_for_the_newest_that_matters_least() {
    let mut play = Play::new();
    play.terms.requests = 3;
    let (old, new) = (play.comes("a", -1, 10), play.comes("a", -1, 10));
    let middle = play.comes("a", 0, 10);
    let (terms, now) = (play.terms.clone(), play.now);
    let mut enter = |priority| {
        let entered = play.line.enter(entry("a", priority, 10, now), &terms, now);
        entered.map(|it| (it.id, numbers(it.pushed_out)))
    };
    assert_eq!(enter(-1), Err(Full::Line));
    let (third, gone) = enter(0).unwrap();
    assert_eq!(gone, [new]);
    assert_eq!(enter(1).unwrap().1, [old]);
    assert_eq!(enter(0), Err(Full::Line));
    assert_eq!(enter(1).unwrap().1, [third]);
    assert_eq!(enter(1).unwrap().1, [middle]);
    assert_eq!(enter(1), Err(Full::Line));
    assert_eq!((play.line.len(), play.line.bytes()), (3, 3));
}

#[test]
fn nobody_fills_the_line_for_others() {
    let mut play = Play::new();
    play.terms.requests = 10;
    let greedy: Vec<_> = (0..10).map(|_| play.comes("greedy", 0, 10)).collect();
    let mut came = 0;
    while let Ok(entered) = play.line.enter(entry("modest", 0, 10, play.at(30)), &play.terms, play.now) {
        came += 1;
        assert_eq!(numbers(entered.pushed_out), [greedy[10 - came]], "the newest of it");
    }
    assert_eq!(came, 5, "half of it each");
    play.terms.requests = 100;
    play.terms.tenant_requests = 6;
    play.comes("modest", 0, 10);
    let seventh = play.line.enter(entry("modest", 0, 10, play.at(30)), &play.terms, play.now);
    assert_eq!(seventh, Err(Full::Tenant));
    let urgent = play.line.enter(entry("modest", 1, 10, play.at(30)), &play.terms, play.now);
    assert_eq!(urgent.unwrap().pushed_out.len(), 1, "its own that matters less makes room");
}

#[test]
fn bytes_are_bounded_in_all_and_for_each_tenant() {
    let mut play = Play::new();
    play.terms.bytes = Bytes(100);
    play.terms.tenant_bytes = Bytes(60);
    let mut enter = |tenant: &str, priority, bytes| {
        let entry = Entry { bytes, ..entry(tenant, priority, 10, play.at(30)) };
        play.line.enter(entry, &play.terms, play.now).map(|it| it.pushed_out.len())
    };
    assert_eq!(enter("a", 0, 60), Ok(0));
    assert_eq!(enter("a", 0, 1), Err(Full::Tenant));
    assert_eq!(enter("b", 0, 41), Err(Full::Line));
    assert_eq!(enter("b", 0, 20), Ok(0));
    assert_eq!(enter("c", 0, 20), Ok(0));
    assert_eq!(enter("d", 1, 25), Ok(2), "two that matter less make room");
    assert_eq!(enter("d", 1, 1_000), Err(Full::Line), "nobody leaves for one that does not fit anyway");
    assert_eq!(play.line.len(), 2);
}

#[test]
fn what_stands_before_somebody_is_what_its_turns_leave_of_the_others() {
    let mut play = Play::new();
    play.come(2, "vip", 1, 1_000);
    play.come(10, "much", 0, 1_000);
    play.come(3, "little", 0, 200);
    play.comes("batch", -1, 5_000);
    let ahead = |tenant, priority, tokens, secs| play.line.ahead(&entry(tenant, priority, tokens, play.at(secs)));
    assert_eq!(ahead("new", 1, 500, 30), Ahead { requests: 1, tokens: 500 });
    assert_eq!(ahead("vip", 1, 500, 30), Ahead { requests: 2, tokens: 2_000 });
    assert_eq!(ahead("little", 0, 200, 30), Ahead { requests: 2 + 3 + 4, tokens: 2_000 + 600 + 800 });
    assert_eq!(ahead("little", 0, 200, 1), Ahead { requests: 2 + 1, tokens: 2_000 + 200 }, "due before its own");
    assert_eq!(ahead("new", -9, 200, 30), Ahead { requests: 2 + 10 + 3 + 1, tokens: 2_000 + 10_000 + 600 + 5_000 });
    assert_eq!(play.line.bands("pool").iter().map(|(priority, _)| *priority).collect::<Vec<_>>(), [1, 0, -1]);
}

#[test]
fn the_drain_is_measured_while_somebody_waits_and_a_standstill_slows_it() {
    let mut play = Play::new();
    play.come(100, "a", 0, 1_000);
    let start = play.now;
    assert_eq!(play.line.wait_for("pool", 1_000, start), None, "nothing was measured yet");
    for nth in 1..=40u32 {
        play.now = start + Duration::from_millis(250) * nth;
        play.serve();
    }
    let wait = |play: &Play, tokens| play.line.wait_for("pool", tokens, play.now).unwrap().as_secs_f64();
    assert!((wait(&play, 8_000) - 2.0).abs() < 0.01, "4,000 a second");
    play.now += Duration::from_secs(10);
    assert!(wait(&play, 8_000) > 4.0, "nothing went for 10 s: {}", wait(&play, 8_000));
    while play.serve().is_some() {}
    let (before, later) = (wait(&play, 8_000), play.now + Duration::from_secs(3_600));
    play.now = later;
    assert!((wait(&play, 8_000) - before).abs() < 1e-9, "time in which nobody waited says nothing");
}

#[test]
fn who_was_taken_and_not_served_stands_where_it_stood_and_has_paid_nothing() {
    let mut play = Play::new();
    let first = play.comes("a", 0, 5_000);
    let second = play.comes("a", 0, 10);
    let other = play.comes("b", 0, 10);
    let taken = play.line.take(first, play.now).unwrap();
    play.line.enter_again(first, taken, &play.terms, play.now);
    assert_eq!(play.line.next("pool", |_| true), Some(first));
    play.line.take(first, play.now);
    assert_eq!(play.line.next("pool", |_| true), Some(other), "now it has had its turn");
    play.line.take(other, play.now);
    assert_eq!(play.line.next("pool", |_| true), Some(second));
}

/// What happens to a line.
#[derive(Clone, Debug)]
enum Event {
    Comes { tenant: usize, priority: i32, lane: usize, tokens: u32, bytes: u64, due: u64 },
    Next { open: [bool; 3] },
    Leaves { nth: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let comes = (0..4usize, -1..2i32, 0..3usize, 0..5_000u32, 0..50u64, 0..30u64);
    let comes = comes.prop_map(|(tenant, priority, lane, tokens, bytes, due)| Event::Comes {
        tenant,
        priority,
        lane,
        tokens,
        bytes,
        due,
    });
    let next = any::<[bool; 3]>().prop_map(|open| Event::Next { open });
    let leaves = any::<usize>().prop_map(|nth| Event::Leaves { nth });
    prop::collection::vec(prop_oneof![4 => comes, 3 => next, 1 => leaves], 0..200)
}

const LANES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #[test]
    fn nobody_is_lost_bounds_hold_and_an_open_lane_is_always_served(events in events(), shares in any::<bool>()) {
        let mut play = Play::new();
        play.terms.requests = 20;
        play.terms.tenant_requests = 8;
        play.terms.bytes = Bytes(300);
        if shares {
            play.terms.shares = [Share { priority: -1, share: Ratio(0.2) }].into();
        }
        let mut there: BTreeSet<Id> = BTreeSet::new();
        for event in events {
            match event {
                Event::Comes { tenant, priority, lane, tokens, bytes, due } => {
                    let mut entry = entry(&format!("t{tenant}"), priority, tokens, play.at(due));
                    (entry.lane, entry.bytes) = (LANES[lane], bytes);
                    if let Ok(entered) = play.line.enter(entry, &play.terms, play.now) {
                        for gone in numbers(entered.pushed_out) {
                            prop_assert!(there.remove(&gone));
                        }
                        there.insert(entered.id);
                    }
                }
                Event::Next { open } => {
                    let is_open = |lane: &&str| LANES.iter().zip(open).any(|(it, open)| it == lane && open);
                    let found = play.line.next("pool", is_open);
                    let could = there.iter().any(|id| play.line.entry(*id).is_some_and(|it| is_open(&it.lane)));
                    prop_assert_eq!(found.is_some(), could);
                    if let Some(id) = found {
                        let entry = play.line.take(id, play.now).unwrap();
                        prop_assert!(is_open(&entry.lane) && there.remove(&id));
                        let above = there.iter().filter_map(|id| play.line.entry(*id));
                        let above = above.filter(|it| is_open(&it.lane)).any(|it| it.priority > entry.priority);
                        prop_assert!(!above || (shares && entry.priority == -1));
                    }
                }
                Event::Leaves { nth } => {
                    let id = there.iter().nth(nth % there.len().max(1)).copied();
                    if let Some(id) = id {
                        prop_assert!(play.line.leave(id).is_some() && there.remove(&id));
                        prop_assert!(play.line.leave(id).is_none());
                    }
                }
            }
            prop_assert!(play.line.len() <= 20 && play.line.bytes() <= 300);
            prop_assert_eq!(play.line.len(), there.len());
            prop_assert_eq!(play.line.waiting_for("pool"), there.len());
            let bytes: u64 = there.iter().filter_map(|id| play.line.entry(*id)).map(|it| it.bytes).sum();
            prop_assert_eq!(play.line.bytes(), bytes);
            let tokens: u64 = there.iter().filter_map(|id| play.line.entry(*id)).map(|it| u64::from(it.tokens)).sum();
            prop_assert_eq!(play.line.bands("pool").iter().map(|(_, it)| it.tokens).sum::<u64>(), tokens);
        }
        while let Some(id) = play.line.next("pool", |_| true) {
            play.line.take(id, play.now);
        }
        prop_assert!(play.line.is_empty() && play.line.bytes() == 0 && play.line.bands("pool").is_empty());
        play.line.forget("pool");
    }

    #[test]
    fn tenants_that_all_wait_get_the_same_within_their_largest_requests(
        // No smaller, so that all of them fit in the line at once.
        sizes in prop::collection::vec(25..20_000u32, 2..6),
    ) {
        let mut play = Play::new();
        let each = 400_000u64;
        for (nth, size) in sizes.iter().enumerate() {
            let many = each / u64::from(*size) + 1;
            for _ in 0..many {
                play.comes(&format!("t{nth}"), 0, *size);
            }
        }
        let served = play.served(each);
        let most = served.values().max().unwrap();
        let least = sizes.iter().enumerate().map(|(nth, _)| served.get(&*format!("t{nth}")).unwrap_or(&0)).min();
        let largest = u64::from(*sizes.iter().max().unwrap());
        prop_assert!(most - least.unwrap() <= 2 * largest + 1_024, "{:?}", served);
    }

    #[test]
    fn with_a_share_nobody_starves(share in 0.02..0.5f64, size in 1..3_000u32) {
        let mut play = Play::new();
        play.terms.shares = [Share { priority: -1, share: Ratio(share) }].into();
        let low = play.comes("low", -1, size);
        let mut before = 0.0;
        loop {
            play.comes("high", 1, 1_000);
            let id = play.line.next("pool", |_| true).unwrap();
            play.line.take(id, play.now);
            if id == low {
                break;
            }
            before += 1_000.0;
            prop_assert!(before <= f64::from(size) / share + 2_000.0);
        }
    }
}
