//! The line as those meet it who stand there, on a clock that runs only when told.

use futures_util::FutureExt as _;

use super::{gaps::RETRY_AFTER, *};
use crate::{
    config::Bytes,
    fleet::{Course, Fleet, PodLoad, Reading, ReportedModel, Send, for_test},
    telemetry::Rows,
};

fn limits() -> config::Waiting {
    config::Waiting {
        timeout: Duration::from_secs(30),
        first_token: None,
        requests: 1_000,
        bytes: Bytes(1_000),
        tenant_requests: 1_000,
        tenant_bytes: Bytes(1_000),
        shares: [].into(),
        evict_sheddable: false,
    }
}

/// A line over a pool that has shown nothing: 0.05 ms a prompt token, and full from a second on.
struct House {
    room: Waiting,
    pool: Arc<PoolState>,
    limits: config::Waiting,
}

impl House {
    fn of(pods: usize) -> Self {
        let fleet = Fleet::new(&[for_test::pool("pool")], clock::now());
        let targets: Vec<_> = (0..pods).map(|n| for_test::target(&format!("pod-{n}"))).collect();
        fleet.set("pool", &targets, clock::now());
        let room = Waiting::new(&Metrics::new(Arc::new(Rows::default)));
        Self { room, pool: fleet.pool("pool").unwrap(), limits: limits() }
    }

    fn enter(&self, asked: Asked, coming: (usize, Option<u64>)) -> Result<Place<'_>, Rejection> {
        let (bytes, tried) = coming;
        self.room.enter(&self.pool, asked, Coming { bytes, tried, timeout: self.limits.timeout, limits: &self.limits })
    }

    /// One that found no pod.
    fn found_none(&self, bytes: usize) -> Result<Place<'_>, Rejection> {
        self.enter(asked(0), (bytes, Some(self.pool.news())))
    }

    /// One for which there is no room.
    fn comes(&self, priority: i32) -> Place<'_> {
        self.enter(asked(priority), (1, None)).unwrap()
    }

    /// A prompt of so many tokens on the pod: with 20,000 it is full.
    fn sends(&self, pod: usize, tokens: u32) -> Course {
        let pod = Arc::clone(&self.pool.pods()[pod]);
        Course::begin(&self.pool, &pod, Send { prompt_tokens: tokens, uncached_tokens: tokens }, clock::now())
    }

    fn ends(&self, course: Course) {
        drop(course);
        self.room.room_may_be("pool");
    }

    fn hears(&self) {
        self.pool.tell_news();
        self.room.room_may_be("pool");
    }
}

fn asked(priority: i32) -> Asked {
    Asked { model: "m".into(), few: None, tenant: "t".into(), priority, tokens: 1_000, deadline: None, promised: None }
}

fn called_now(place: &mut Place<'_>) -> bool {
    place.called().now_or_never().is_some_and(|called| called.is_ok())
}

/// Which of `places` are called.
fn called(places: &mut [Place<'_>]) -> Vec<usize> {
    (0..places.len()).filter(|at| called_now(&mut places[*at])).collect()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_that_wait_for_a_pod_are_called_in_the_order_in_which_they_came() {
    let house = House::of(0);
    let mut places: Vec<_> = (0..1_000).map(|_| house.found_none(1).unwrap()).collect();
    assert!(called(&mut places).is_empty(), "nothing was heard yet");
    house.hears();
    for at in 0..places.len() {
        assert_eq!(called(&mut places), [at], "one at a time");
        places[at].served();
    }
    drop(places);
    assert!(house.room.is_empty() && house.room.state().line.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_end_calls_exactly_one_of_a_thousand_that_wait_for_room() {
    let house = House::of(1);
    let mut there = house.sends(0, 20_000);
    let mut places: Vec<_> = (0..1_000).map(|_| house.comes(0)).collect();
    assert!(called(&mut places).is_empty(), "it is full");
    for at in 0..places.len() {
        house.ends(there);
        house.room.room_may_be("pool");
        assert_eq!(called(&mut places), [at], "in the order in which they came");
        there = house.sends(0, 20_000);
        places[at].served();
    }
    house.ends(there);
    drop(places);
    assert!(house.room.is_empty());
}

#[tokio::test(start_paused = true)]
async fn room_for_many_calls_them_one_after_the_other() {
    let house = House::of(1);
    let there = house.sends(0, 20_000);
    let mut places: Vec<_> = (0..5).map(|_| house.comes(0)).collect();
    house.ends(there);
    let mut courses = Vec::new();
    while let [at] = called(&mut places)[..] {
        courses.push(house.sends(0, 8_000));
        places[at].served();
    }
    assert_eq!(courses.len(), 3, "24,000 tokens at 0.05 ms are more than a second, 16,000 are not");
    let mut second = courses.remove(1);
    second.first_token();
    house.room.room_may_be("pool");
    assert_eq!(called(&mut places), [3], "a first token makes room as well");
}

#[tokio::test(start_paused = true)]
async fn who_matters_more_goes_first_and_who_leaves_hands_the_call_on() {
    let house = House::of(1);
    let there = house.sends(0, 20_000);
    let mut places: Vec<_> = [0, -1, 1, 0].map(|priority| house.comes(priority)).into();
    house.ends(there);
    assert_eq!(called(&mut places), [2]);
    drop(places.remove(2));
    assert_eq!(called(&mut places), [0]);
    drop(places.remove(0));
    assert_eq!(called(&mut places), [1]);
}

#[tokio::test(start_paused = true)]
async fn who_found_no_pod_stays_and_who_comes_back_stands_where_it_stood() {
    let house = House::of(0);
    let mut places: Vec<_> = (0..3).map(|_| house.found_none(1).unwrap()).collect();
    house.hears();
    drop(places.remove(0));
    assert_eq!(called(&mut places), [0], "the second is first now");
    places[0].stays();
    assert!(called(&mut places).is_empty(), "there is no pod for anybody");
    house.hears();
    assert_eq!(called(&mut places), [0]);
    places[0].served();
    assert_eq!(called(&mut places), [1]);
    places[0].back();
    places[1].stays();
    house.hears();
    assert_eq!(called(&mut places), [0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_heard_between_a_try_and_the_line_is_not_missed() {
    let house = House::of(0);
    let before = house.pool.news();
    house.hears();
    let mut place = house.enter(asked(0), (1, Some(before))).unwrap();
    assert!(called_now(&mut place));
    house.pool.tell_news();
    place.stays();
    assert!(called_now(&mut place));
    place.stays();
    assert!(!called_now(&mut place), "nothing new");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_behind_one_who_waits_for_another_model() {
    let house = House::of(2);
    for (pod, model) in house.pool.pods().iter().zip(["m", "other"]) {
        pod.store_models(vec![ReportedModel { name: model.into(), parent: None }]);
    }
    let _there = house.sends(0, 20_000);
    let mut places = [house.comes(1), house.enter(Asked { model: "other".into(), ..asked(0) }, (1, None)).unwrap()];
    assert_eq!(called(&mut places), [1], "its pod is free");
}

#[tokio::test(start_paused = true)]
async fn the_line_is_bounded_in_requests_bytes_and_time() {
    let house = House::of(0);
    let mut first = house.found_none(999).unwrap();
    assert!(matches!(house.found_none(2), Err(Rejection::LineFull { pause: RETRY_AFTER })));
    let began = clock::now();
    let expired = first.called().await;
    assert!(matches!(expired, Err(Rejection::NoPodInTime { .. })), "{expired:?}");
    assert_eq!(clock::now() - began, limits().timeout);
    drop(first);
    let few: Vec<_> = (0..1_000).map(|_| house.found_none(0).unwrap()).collect();
    assert!(matches!(house.found_none(0), Err(Rejection::LineFull { .. })));
    drop(few);
    assert!(house.room.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_is_refused_in_other_words_and_gives_way_to_who_matters_more() {
    let mut house = House::of(1);
    house.limits.requests = 1;
    let _there = house.sends(0, 39_000);
    let mut first = house.comes(0);
    let full = house.enter(asked(0), (1, None)).map(drop);
    let Err(Rejection::Busy { why: Busy::LineFull, pause }) = full else { panic!("{full:?}") };
    assert_eq!(pause, Duration::from_secs(2), "nothing was measured: what the pods have before them");
    let mut second = house.comes(1);
    let gone = first.called().now_or_never().unwrap();
    assert!(matches!(gone, Err(Rejection::Busy { why: Busy::PushedOut, .. })), "{gone:?}");
    drop(first);
    let late = second.called().await;
    assert!(matches!(late, Err(Rejection::Busy { why: Busy::Expired, .. })), "{late:?}");
    drop(second);
    assert!(house.room.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_go_in_time_is_refused_at_once() {
    let house = House::of(1);
    let mut there = house.sends(0, 20_000);
    let mut places: Vec<_> = (0..40).map(|_| house.comes(0)).collect();
    // Two a second: 2,000 tokens.
    for place in &mut places[..10] {
        tokio::time::advance(Duration::from_millis(500)).await;
        house.ends(there);
        assert!(called_now(place));
        there = house.sends(0, 20_000);
        place.served();
    }
    let due = |secs| Asked { deadline: Some(clock::now() + Duration::from_secs(secs)), ..asked(0) };
    let hopeless = house.enter(Asked { tenant: "t".into(), ..due(31) }, (1, None)).map(drop);
    assert!(hopeless.is_ok(), "30 before it take 15 s: {hopeless:?}");
    let more: Vec<_> = (0..40).map(|_| house.enter(asked(0), (1, None))).collect();
    let refused = more.iter().filter(|it| it.is_err()).count();
    assert_eq!(refused, 10, "60 are served in the 30 s that they may wait");
    let Some(Err(Rejection::Busy { why: Busy::TooLate, pause })) = more.last() else { panic!() };
    assert_eq!(pause.as_secs(), 30);
    assert!(house.enter(Asked { tenant: "other".into(), ..due(2) }, (1, None)).is_ok(), "its turn comes sooner");
    assert!(house.enter(Asked { priority: 1, ..asked(0) }, (1, None)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_when_is_promised_a_time_while_there_are_pods() {
    let promised = || Asked { promised: Some(Duration::from_secs(2)), ..asked(0) };
    let house = House::of(1);
    let _there = house.sends(0, 20_000);
    let began = clock::now();
    let mut place = house.enter(promised(), (1, None)).unwrap();
    assert!(matches!(place.called().await, Err(Rejection::Busy { why: Busy::Expired, .. })));
    assert_eq!((clock::now() - began).as_secs(), 2);
    let sooner = Asked { deadline: Some(clock::now() + Duration::from_secs(1)), ..promised() };
    let mut place = house.enter(sooner, (1, None)).unwrap();
    assert!(place.called().await.is_err());
    assert_eq!((clock::now() - began).as_secs(), 3);
    drop(place);

    let house = House::of(0);
    let mut place = house.enter(promised(), (1, Some(house.pool.news()))).unwrap();
    assert!(place.called().await.is_err());
    assert_eq!((clock::now() - began).as_secs(), 33, "nobody promises that there are pods");
}

#[tokio::test(start_paused = true)]
async fn a_pods_pause_is_over_when_it_is_over_though_nothing_is_heard() {
    let house = House::of(1);
    let now = clock::now();
    house.pool.pods()[0].health.pushed_back(Some(Duration::from_secs(7)), now, now);
    let mut place = house.comes(0);
    place.called().await.unwrap();
    let waited = clock::now() - now;
    assert!((5_999..6_100).contains(&waited.as_millis()), "a second is not too long: {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_told_of_others_and_was_the_last_keeps_nobody_for_longer_than_it_is_believed() {
    let house = House::of(1);
    let reading = Reading { running: Some(10), waiting: Some(90), kv_usage: Some(1.0), ..Reading::default() };
    let now = clock::now();
    house.pool.pods()[0].store_load(PodLoad { began: now, sent_mark: 0, ended_mark: 0, reading });
    // The first leaves, so that another has to look.
    let (first, mut second) = (house.comes(0), house.comes(0));
    drop(first);
    second.called().await.unwrap();
    let waited = clock::now() - now;
    assert!((1..=6).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_to_come_again_when_gaps_are_usually_over() {
    let house = House::of(0);
    let pause = |house: &House| house.room.state().pause_for_a_pod("pool", clock::now()).as_secs();
    assert_eq!(pause(&house), RETRY_AFTER.as_secs(), "nothing measured");
    let mut places: Vec<_> = (0..3).map(|_| house.found_none(0).unwrap()).collect();
    tokio::time::advance(Duration::from_secs(20)).await;
    for place in &mut places {
        place.served();
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    drop(places);
    // The gap took 20 s, each further one 2 s.
    let waiting: Vec<_> = (0..5).map(|_| house.found_none(0).unwrap()).collect();
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(pause(&house), 15 + 5 * 2);
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(pause(&house), 25 + 5 * 2, "it lasts longer than usual, so as long again");
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(pause(&house), 60);
    drop(waiting);
}
