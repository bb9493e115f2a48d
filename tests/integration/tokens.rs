//! Who is let in by a token: keys that an issuer changes, an issuer that is not there, tokens that are made up.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, http::StatusCode, routing::get};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tidegate::tasks::Tasks;

use crate::{
    harness::{
        Call, Gateway, SimPod, chat, eventually,
        lines::{Lines, told},
    },
    identifying::KeyFile,
};

/// Base64 as tokens have it.
fn base64(bytes: impl AsRef<[u8]>) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letters = |chunk: &[u8]| {
        let bits = chunk.iter().chain(&[0, 0]).take(3).fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        let all = [18, 12, 6, 0].map(|shift| char::from(LETTERS[bits >> shift & 63]));
        all.into_iter().take(chunk.len() + 1).collect::<String>()
    };
    bytes.as_ref().chunks(3).map(letters).collect()
}

/// A key of an issuer's, by its id.
struct Signer(&'static str, Ed25519KeyPair);

impl Signer {
    fn new(id: &'static str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(id, Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn public(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.0, "x": base64(self.1.public_key())})
    }

    fn token(&self, claims: &Value) -> String {
        let head = json!({"alg": "EdDSA", "kid": self.0});
        let signed = format!("{}.{}", base64(head.to_string()), base64(claims.to_string()));
        format!("{signed}.{}", base64(self.1.sign(signed.as_bytes())))
    }
}

/// An issuer on loopback, with its configuration and its keys.
struct Issuer {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    is_there: Arc<AtomicBool>,
    fetched: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Issuer {
    async fn with(keys: &[&Signer]) -> Self {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(keys.iter().map(|it| it.public()).collect::<Vec<_>>()));
        let (is_there, fetched) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
        let about = json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string();
        let (published, answers, asked) = (Arc::clone(&keys), Arc::clone(&is_there), Arc::clone(&fetched));
        let set = move || {
            asked.fetch_add(1, Relaxed);
            let set = json!({"keys": *published.lock().unwrap()}).to_string();
            let status = if answers.load(Relaxed) { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
            async move { (status, set) }
        };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(move || async move { about }))
            .route("/keys", get(set));
        let tasks = Tasks::new();
        tasks.spawn_until_stop(async move { axum::serve(socket, router).await.unwrap() });
        Self { url, keys, is_there, fetched, tasks }
    }

    fn publish(&self, keys: &[&Signer]) {
        *self.keys.lock().unwrap() = keys.iter().map(|it| it.public()).collect();
    }

    fn section(&self, more: &str) -> String {
        format!("{{ issuer: \"{}\", audiences: [tidegate], claims: {{ tenant: org }}{more} }}", self.url)
    }

    fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({"iss": self.url, "aud": "tidegate", "exp": now + 600, "sub": "u1", "org": "shop"})
    }
}

fn bearer(call: Call, token: &str) -> Call {
    call.header("authorization", &format!("Bearer {token}"))
}

#[tokio::test]
async fn a_token_lets_in_whoever_its_issuer_says_and_keys_beside_it_still_do() {
    let (lines, _guard) = Lines::kept();
    let (pod, old) = (SimPod::start().await, Signer::new("old"));
    let issuer = Issuer::with(&[&old]).await;
    let file = KeyFile::of(&[("a-key.with.dots-0123456789-0123456789", "")]);
    let section = file.section().replace("identity: {", &format!("identity: {{ jwt: [{}],", issuer.section("")));
    let gateway = Gateway::over([pod.endpoint()]).yaml(&section).start().await;
    // The first waits for the issuer's keys, if they are not here yet.
    let token = old.token(&issuer.claims());
    assert_eq!(bearer(chat("hi", 2), &token).send(gateway.addr).await.status(), 200);
    assert_eq!(told(&lines.one(&gateway).await, ["tenant", "key"]), ["shop", "u1"]);
    assert_eq!(chat("hi", 2).header("x-api-key", &token).send(gateway.addr).await.status(), 200);
    let key = "a-key.with.dots-0123456789-0123456789";
    assert_eq!(bearer(chat("hi", 2), key).send(gateway.addr).await.status(), 200);
    gateway.quiet().await;
    lines.requests();
    let with = |key: &str, value: Value| {
        let mut claims = issuer.claims();
        claims[key] = value;
        old.token(&claims)
    };
    for (token, exactly) in [
        (with("aud", json!("other")), "wrong_audience"),
        (with("iss", json!("https://other")), "unknown_issuer"),
        (with("exp", json!(1_000)), "expired"),
        (with("org", json!(null)), "no_tenant"),
        (Signer::new("old").token(&issuer.claims()), "wrong_signature"),
        ("not.a.token".to_owned(), "bad_token"),
        ("no-token-either".to_owned(), "unknown_key"),
    ] {
        let error = bearer(chat("hi", 2), &token).send(gateway.addr).await.error(401).await;
        assert!(!error.to_string().contains(&token[..10]), "{error}");
        assert_eq!(told(&lines.one(&gateway).await, ["reason", "tenant"]), [exactly, ""]);
    }
}

#[tokio::test]
async fn keys_that_an_issuer_changes_are_taken_over_and_one_that_is_away_keeps_its_last() {
    let (lines, _guard) = Lines::kept();
    let (pod, old, new) = (SimPod::start().await, Signer::new("old"), Signer::new("new"));
    let issuer = Issuer::with(&[&old]).await;
    let more = format!(", jwks_url: \"{}/keys\", algorithms: [EdDSA]", issuer.url);
    let section = format!("identity: {{ jwt: [{}] }}", issuer.section(&more));
    let gateway = Gateway::over([pod.endpoint()]).yaml(&section).start().await;
    let status = async |signer: &Signer| {
        bearer(chat("hi", 1), &signer.token(&issuer.claims())).send(gateway.addr).await.status()
    };
    assert_eq!(status(&old).await, 200);
    // It goes away: what it published holds on, and a key that nobody knows is nobody's.
    issuer.is_there.store(false, Relaxed);
    assert_eq!((status(&new).await, status(&old).await), (401, 200));
    let source = async || gateway.counted("tidegate_identity_source_usable", &[&issuer.url]).await;
    assert_eq!(source().await, 0.0);
    let warnings = lines.warnings();
    assert!(format!("{warnings:?}").contains("status 502"), "{warnings:?}");
    // It is back with a new key beside the old one: asked for at the next pause after a failure.
    issuer.publish(&[&old, &new]);
    issuer.is_there.store(true, Relaxed);
    let before = issuer.fetched.load(Relaxed);
    eventually("another fetch", || issuer.fetched.load(Relaxed) > before).await;
    let mut late = 0;
    while late != 200 {
        late = status(&new).await;
    }
    assert_eq!(status(&old).await, 200);
    assert_eq!(source().await, 1.0);
}

#[tokio::test]
async fn a_key_that_is_new_is_asked_for_at_once_and_made_up_ones_are_no_burden() {
    let (pod, old, new) = (SimPod::start().await, Signer::new("old"), Signer::new("new"));
    let issuer = Issuer::with(&[&old]).await;
    let section = format!("identity: {{ jwt: [{}] }}", issuer.section(""));
    let gateway = Gateway::over([pod.endpoint()]).yaml(&section).start().await;
    let status = async |signer: &Signer| {
        bearer(chat("hi", 1), &signer.token(&issuer.claims())).send(gateway.addr).await.status()
    };
    assert_eq!(status(&old).await, 200);
    assert_eq!(issuer.fetched.load(Relaxed), 1);
    issuer.publish(&[&new]);
    assert_eq!(status(&new).await, 200, "the token waits for the keys to be fetched");
    assert_eq!(issuer.fetched.load(Relaxed), 2);
    assert_eq!(status(&old).await, 401, "a key that its issuer has taken back signs nothing any more");
    for _ in 0..20 {
        assert_eq!(status(&Signer::new("made-up")).await, 401);
    }
    assert_eq!(issuer.fetched.load(Relaxed), 2, "not so soon again");
}
