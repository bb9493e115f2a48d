//! Two gateways and one Redis: what they let in together is what one alone would, and what becomes of requests while Redis
//! is away is what the operator said.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use redis::aio::MultiplexedConnection;

use super::harness::{Gateway, SimPod, chat, chat_stream, eventually};

/// A currency in which a token costs one.
const A_TOKEN_COSTS_ONE: &str = "prices: [{ modelName: m, input_per_million: 1000000, output_per_million: 1000000 }]";

/// A Redis of the test's own, which ends with it.
struct Redis {
    address: SocketAddr,
    server: Child,
}

impl Redis {
    /// One, if this machine has any. Where one has to be there (`TIDEGATE_REDIS`), its absence is a failure.
    #[expect(clippy::print_stderr, reason = "who runs the tests should know what was not tested")]
    async fn start() -> Option<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let started = Self::start_at(free).await;
        if started.is_none() {
            assert!(env::var_os("TIDEGATE_REDIS").is_none(), "there is no redis-server here");
            eprintln!("SKIPPED: there is no redis-server here; `apt-get install redis-server` brings it");
        }
        started
    }

    async fn start_at(address: SocketAddr) -> Option<Self> {
        let program = env::var_os("TIDEGATE_REDIS").unwrap_or_else(|| "redis-server".into());
        let port = address.port().to_string();
        let server = Command::new(program)
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn();
        let it = Self { address, server: server.ok()? };
        eventually("Redis to listen", || TcpStream::connect(address).is_ok()).await;
        Some(it)
    }

    fn section(&self, outage: &str) -> String {
        // A test machine may be slow to answer; that is no outage here.
        format!("redis: {{ url: \"redis://{}\", timeout: 10s, outage: {outage} }}", self.address)
    }

    /// What the anonymous have spent in this month.
    async fn spent(&self) -> f64 {
        let client = redis::Client::open(format!("redis://{}", self.address)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut ask = redis::cmd("HGET");
        let nanos: Option<f64> =
            ask.arg("{tidegate}:spent:tenant:anonymous").arg("ma").query_async(&mut connection).await.unwrap();
        nanos.unwrap_or(0.0) / 1e9
    }

    async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(format!("redis://{}", self.address)).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// As the operating system does to whom it gives no time: connections stand, and nobody answers.
    fn hangs(&self, hangs: bool) {
        let signal = if hangs { "STOP" } else { "CONT" };
        let told = Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.server.id())]).status();
        assert!(told.unwrap().success());
    }

    /// How many of all are open.
    async fn open(&self) -> u64 {
        redis::cmd("ZCARD").arg("{tidegate}:open:all:").query_async(&mut self.connect().await).await.unwrap()
    }

    /// Every key and how long it has.
    async fn keys(&self) -> Vec<(String, i64)> {
        let client = redis::Client::open(format!("redis://{}", self.address)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let names: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
        let mut keys = Vec::new();
        for name in names {
            let left: i64 = redis::cmd("TTL").arg(&name).query_async(&mut connection).await.unwrap();
            keys.push((name, left));
        }
        keys
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        _ = self.server.kill();
        _ = self.server.wait();
    }
}

async fn gateway(pod: &SimPod, quotas: &str, redis: &str) -> Gateway {
    let gateway = Gateway::over([pod.endpoint()]).yaml(&format!("quotas:\n  {quotas}\n  {redis}")).start().await;
    is_up(&gateway, 1).await;
    gateway.sees_all_pods().await;
    gateway
}

async fn is_up(gateway: &Gateway, up: i64) {
    eventually("the shared counts", || gateway.running.house.metrics.quotas.shared_up.get() == up).await;
}

#[tokio::test]
async fn two_gateways_exceed_one_budget_by_no_more_than_one_reservation_each() {
    let Some(redis) = Redis::start().await else { return };
    let pod = SimPod::start().await;
    let quotas =
        format!("tenants: [{{ name: anonymous, limits: {{ budget_per_month: 300 }} }}]\n  {A_TOKEN_COSTS_ONE}");
    let one = gateway(&pod, &quotas, &redis.section("refuse")).await;
    let other = gateway(&pod, &quotas, &redis.section("refuse")).await;
    let calls: Vec<_> = (0..200).map(|n| chat("hello", 3).begin([one.addr, other.addr][n % 2])).collect();
    let (mut taken, mut served, mut largest) = (0.0, 0, 0.0_f64);
    for call in calls {
        let reply = call.await.unwrap();
        if reply.status() == 200 {
            let tokens = reply.json().await["usage"]["total_tokens"].as_f64().unwrap();
            (taken, served, largest) = (taken + tokens, served + 1, largest.max(tokens));
        } else {
            assert_eq!(reply.header("x-should-retry"), Some("false"));
            assert_eq!(reply.error(429).await["code"], "insufficient_quota");
        }
    }
    assert!(served > 0 && taken <= 300.0 + 2.0 * largest, "{served} {taken}");
    one.quiet().await;
    other.quiet().await;
    // What was reserved and not used comes back: what is counted in the end is what clients were told.
    let mut spent = 0.0;
    for _ in 0..1_000 {
        spent = redis.spent().await;
        if spent == taken {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(spent, taken);
    let keys = redis.keys().await;
    assert!(!keys.is_empty() && keys.iter().all(|(_, left)| *left > 0), "{keys:?}");
}

#[tokio::test]
async fn who_is_open_at_one_gateway_is_open_at_the_other_and_no_longer_when_it_has_left() {
    let Some(redis) = Redis::start().await else { return };
    let pod = SimPod::start().await;
    let quotas = "all: { concurrent_requests: 1, requests_per_minute: 1000 }";
    let one = gateway(&pod, quotas, &redis.section("refuse")).await;
    let other = gateway(&pod, quotas, &redis.section("refuse")).await;
    let mut open = chat_stream("hello", 5_000).send(one.addr).await;
    open.piece().await.unwrap().unwrap();
    let refused = chat("hello", 1).send(other.addr).await;
    let left: u64 = refused.header("x-ratelimit-remaining-requests").unwrap().parse().unwrap();
    assert_eq!((refused.status(), left), (429, 999), "one has counted what the other let in");
    drop(open);
    one.quiet().await;
    let mut status = 429;
    for _ in 0..1_000 {
        status = chat("hello", 1).send(other.addr).await.status();
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(status, 200);
}

#[tokio::test]
async fn while_redis_is_away_the_operators_word_holds_and_then_it_is_asked_again() {
    let Some(redis) = Redis::start().await else { return };
    let pod = SimPod::start().await;
    let quotas = "all: { requests_per_minute: 2 }";
    let local = gateway(&pod, quotas, &redis.section("local")).await;
    let allow = gateway(&pod, quotas, &redis.section("allow")).await;
    let refuse = gateway(&pod, quotas, &redis.section("refuse")).await;
    let status = async |gateway: &Gateway| chat("hi", 1).send(gateway.addr).await.status();
    assert_eq!([status(&local).await, status(&allow).await, status(&refuse).await], [200, 200, 429]);

    let address = redis.address;
    drop(redis);
    assert_eq!([status(&local).await, status(&local).await], [200, 429], "its own count, of which one was used before");
    for _ in 0..3 {
        assert_eq!(status(&allow).await, 200);
    }
    let reply = chat("hi", 1).send(refuse.addr).await;
    assert_eq!((reply.status(), reply.header("retry-after")), (503, Some("1")));
    assert_eq!(reply.error(503).await["code"], "limits_unknown");
    for gateway in [&local, &allow, &refuse] {
        is_up(gateway, 0).await;
    }
    assert_eq!(allow.counted("tidegate_shared_counts_unasked_total", &[]).await, 3.0);

    let _redis = Redis::start_at(address).await.unwrap();
    for gateway in [&local, &allow, &refuse] {
        is_up(gateway, 1).await;
    }
    // It has forgotten all, and what it says counts.
    assert_eq!([status(&local).await, status(&allow).await, status(&refuse).await], [200, 200, 429]);
}

#[tokio::test]
async fn who_leaves_while_redis_is_asked_has_spent_nothing_and_is_not_open() {
    let Some(redis) = Redis::start().await else { return };
    let pod = SimPod::start().await;
    let quotas = format!(
        "all: {{ concurrent_requests: 5, tokens_per_minute: 100000 }}\n  \
         tenants: [{{ name: anonymous, limits: {{ budget_per_month: 100000 }} }}]\n  {A_TOKEN_COSTS_ONE}"
    );
    let gateway = gateway(&pod, &quotas, &redis.section("refuse")).await;
    let mut connection = redis.connect().await;
    let pause = redis::cmd("CLIENT").arg("PAUSE").arg(60_000).arg("WRITE").clone();
    pause.query_async::<()>(&mut connection).await.unwrap();
    for _ in 0..3 {
        let leaving = chat("hello", 100).begin(gateway.addr);
        // It came as far as Redis, which holds it back.
        for _ in 0..5_000 {
            let told: String = redis::cmd("INFO").arg("clients").query_async(&mut connection).await.unwrap();
            let open = gateway.running.house.requests_open.load(std::sync::atomic::Ordering::Relaxed);
            if open == 1 && told.contains("blocked_clients:1") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        leaving.abort();
        gateway.quiet().await;
    }
    redis::cmd("CLIENT").arg("UNPAUSE").query_async::<()>(&mut connection).await.unwrap();
    let reply = chat("hello", 3).send(gateway.addr).await;
    assert_eq!(reply.status(), 200);
    let taken = reply.json().await["usage"]["total_tokens"].as_f64().unwrap();
    gateway.quiet().await;
    let (mut spent, mut open) = (0.0, 0);
    for _ in 0..2_000 {
        (spent, open) = (redis.spent().await, redis.open().await);
        if (spent, open) == (taken, 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((spent, open), (taken, 0));
}

#[tokio::test]
async fn a_redis_that_hung_for_a_moment_locks_nobody_out_afterwards() {
    let Some(redis) = Redis::start().await else { return };
    let pod = SimPod::start().await;
    let section = redis.section("local").replace("timeout: 10s", "timeout: 500ms");
    let gateway = gateway(&pod, "all: { concurrent_requests: 3 }", &section).await;
    redis.hangs(true);
    // Each asks, is not answered and is served by what is known here; its question is still in the connection.
    let calls: Vec<_> = (0..3).map(|_| chat("hello", 1).begin(gateway.addr)).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().status(), 200);
    }
    gateway.quiet().await;
    is_up(&gateway, 0).await;
    redis.hangs(false);
    is_up(&gateway, 1).await;
    let mut open = u64::MAX;
    for _ in 0..5_000 {
        open = redis.open().await;
        let settled = redis.keys().await.iter().filter(|(name, _)| name.starts_with("{tidegate}:of:")).count();
        if open == 0 && settled == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(open, 0, "what nobody waited for any more was undone");
    assert_eq!(chat("hello", 1).send(gateway.addr).await.status(), 200);
    assert_eq!(gateway.counted("tidegate_shared_counts_lost_settlements_total", &[]).await, 0.0);
}
