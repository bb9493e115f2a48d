//! Who is let in by a token: keys that an issuer changes, an issuer that is not there, tokens that are made up.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, http::StatusCode, routing::get};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
        RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
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
        token(&json!({"alg": "EdDSA", "kid": self.0}), claims, |it| self.1.sign(it).as_ref().to_vec())
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
    assert_eq!(told(&lines.one(&gateway).await, ["tenant", "key"]), ["shop", &format!("u1@{}", issuer.url)]);
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

/// A token of these parts.
fn token(head: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", base64(head.to_string()), base64(claims.to_string()));
    format!("{signed}.{}", base64(sign(signed.as_bytes())))
}

/// Keys of every kind that an issuer may sign with.
struct Pairs {
    random: SystemRandom,
    rsa: RsaKeyPair,
    /// The public half of it, as text.
    pem: Vec<u8>,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Signer,
}

impl Pairs {
    fn new() -> Self {
        let random = SystemRandom::new();
        let curve = |which: &'static EcdsaSigningAlgorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(which, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(which, pkcs8.as_ref(), &random).unwrap()
        };
        let (p256, p384) = (curve(&ECDSA_P256_SHA256_FIXED_SIGNING), curve(&ECDSA_P384_SHA384_FIXED_SIGNING));
        // ring makes no such keys.
        let openssl = |command: &str| {
            let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rsa.pem").display().to_string();
        let made = "openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out";
        openssl(&format!("{made} {file} 2>&1 || {} {file}", made.replace("-quiet ", "")));
        let private = PrivatePkcs8KeyDer::from_pem_file(&file).unwrap();
        let rsa = RsaKeyPair::from_pkcs8(private.secret_pkcs8_der()).unwrap();
        let pem = openssl(&format!("openssl pkey -in {file} -pubout"));
        Self { random, rsa, pem, p256, p384, ed: Signer::new("ed") }
    }

    /// What the issuer publishes: no key says which algorithm it is for.
    fn published(&self) -> Vec<Value> {
        let PublicKeyComponents::<Vec<u8>> { n, e } = self.rsa.public().into();
        let point = |id: &str, curve: &str, pair: &EcdsaKeyPair| {
            let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
            json!({"kty": "EC", "crv": curve, "kid": id, "x": base64(x), "y": base64(y)})
        };
        vec![
            json!({"kty": "RSA", "kid": "rsa", "n": base64(n), "e": base64(e)}),
            point("p256", "P-256", &self.p256),
            point("p384", "P-384", &self.p384),
            self.ed.public(),
        ]
    }

    /// A signature by this algorithm, and the key that it is by.
    fn sign(&self, algorithm: &str, message: &[u8]) -> (&'static str, Vec<u8>) {
        let by_rsa = |how: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(how, &self.random, message, &mut signature).unwrap();
            ("rsa", signature)
        };
        let by_curve = |pair: &EcdsaKeyPair| pair.sign(&self.random, message).unwrap().as_ref().to_vec();
        match algorithm {
            "RS256" => by_rsa(&RSA_PKCS1_SHA256),
            "RS384" => by_rsa(&RSA_PKCS1_SHA384),
            "RS512" => by_rsa(&RSA_PKCS1_SHA512),
            "PS256" => by_rsa(&RSA_PSS_SHA256),
            "PS384" => by_rsa(&RSA_PSS_SHA384),
            "PS512" => by_rsa(&RSA_PSS_SHA512),
            "ES256" => ("p256", by_curve(&self.p256)),
            "ES384" => ("p384", by_curve(&self.p384)),
            "EdDSA" => ("ed", self.ed.1.sign(message).as_ref().to_vec()),
            other => panic!("{other}"),
        }
    }

    /// A good token by this algorithm, with the key's id if `named`.
    fn token(&self, algorithm: &str, named: bool, claims: &Value) -> String {
        let mut head = json!({"alg": algorithm, "typ": "JWT"});
        if named {
            head["kid"] = self.sign(algorithm, b"").0.into();
        }
        token(&head, claims, |message| self.sign(algorithm, message).1)
    }
}

const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

#[tokio::test]
async fn every_algorithm_that_can_be_pinned_is_verified_and_one_that_is_not_pinned_is_of_no_use() {
    let (lines, _guard) = Lines::kept();
    let (pod, pairs) = (SimPod::start().await, Pairs::new());
    let issuer = Issuer::with(&[]).await;
    *issuer.keys.lock().unwrap() = pairs.published();
    let claims = issuer.claims();
    let pinned = async |algorithms: &str| {
        let section = format!("identity: {{ jwt: [{}] }}", issuer.section(&format!(", algorithms: [{algorithms}]")));
        Gateway::over([pod.endpoint()]).yaml(&section).start().await
    };
    let (all, one) = (pinned(&ALGORITHMS.join(", ")).await, pinned("RS256").await);
    let judged = async |gateway: &Gateway, token: &str| {
        let status = bearer(chat("hi", 1), token).send(gateway.addr).await.status();
        let [reason] = told(&lines.one(gateway).await, ["reason"]);
        assert_eq!(status == 200, reason.is_empty());
        assert!([200, 401].contains(&status));
        reason
    };
    for algorithm in ALGORITHMS {
        let good = pairs.token(algorithm, true, &claims);
        assert_eq!(judged(&all, &good).await, "", "{algorithm}");
        assert_eq!(judged(&all, &pairs.token(algorithm, false, &claims)).await, "", "{algorithm} without the key's id");
        let not_pinned = judged(&one, &good).await;
        assert_eq!(not_pinned, if algorithm == "RS256" { "" } else { "wrong_algorithm" }, "{algorithm}");
        // One bit of the signature, and one of what is signed.
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{signed}.{flipped}{}", &signature[1..]);
        assert_eq!(judged(&all, &forged).await, "wrong_signature", "{algorithm}");
        let mut others = claims.clone();
        others["org"] = json!("bank");
        let (head, _) = signed.split_once('.').unwrap();
        let forged = format!("{head}.{}.{signature}", base64(others.to_string()));
        assert_eq!(judged(&all, &forged).await, "wrong_signature", "{algorithm}");
        // By another algorithm than the head says, with the same key or another.
        for said in ALGORITHMS.into_iter().filter(|it| *it != algorithm) {
            let kid = pairs.sign(said, b"").0;
            let confused = token(&json!({"alg": said, "kid": kid}), &claims, |it| pairs.sign(algorithm, it).1);
            assert_eq!(judged(&all, &confused).await, "wrong_signature", "{algorithm} as {said}");
        }
        let unknown = token(&json!({"alg": algorithm, "kid": "nobody-s"}), &claims, |it| pairs.sign(algorithm, it).1);
        assert_eq!(judged(&all, &unknown).await, "unknown_signing_key", "{algorithm}");
    }
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret_and_a_token_out_of_its_time_is_none() {
    let (lines, _guard) = Lines::kept();
    let (pod, pairs) = (SimPod::start().await, Pairs::new());
    let issuer = Issuer::with(&[]).await;
    *issuer.keys.lock().unwrap() = pairs.published();
    let claims = issuer.claims();
    let more = format!(", algorithms: [{}]", ALGORITHMS.join(", "));
    let section = format!("identity: {{ jwt: [{}] }}", issuer.section(&more));
    let gateway = Gateway::over([pod.endpoint()]).yaml(&section).start().await;
    let judged = async |token: &str| {
        assert_eq!(bearer(chat("hi", 1), token).send(gateway.addr).await.status(), 401);
        let [reason] = told(&lines.one(&gateway).await, ["reason"]);
        reason
    };
    let published = Value::from(pairs.published()).to_string();
    let trimmed = String::from_utf8(pairs.pem.clone()).unwrap().trim().to_owned();
    let secrets = [&*pairs.pem, trimmed.as_bytes(), pairs.rsa.public().as_ref(), published.as_bytes(), b""];
    for (name, algorithm) in [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
    {
        for secret in secrets {
            let secret = hmac::Key::new(algorithm, secret);
            for head in [json!({"alg": name, "kid": "rsa"}), json!({"alg": name})] {
                let confused = token(&head, &claims, |it| hmac::sign(&secret, it).as_ref().to_vec());
                assert_eq!(judged(&confused).await, "wrong_algorithm", "{head}");
                // And as if it were one that is pinned.
                let head = json!({"alg": "RS256", "kid": "rsa"});
                let disguised = token(&head, &claims, |it| hmac::sign(&secret, it).as_ref().to_vec());
                assert_eq!(judged(&disguised).await, "wrong_signature");
            }
        }
    }
    for none in ["none", "None", "nOnE", ""] {
        assert_eq!(judged(&token(&json!({"alg": none}), &claims, |_| Vec::new())).await, "bad_token");
    }
    let bare = pairs.token("RS256", true, &claims);
    assert_eq!(judged(&format!("{}.", bare.rsplit_once('.').unwrap().0)).await, "wrong_signature");
    let now = claims["exp"].as_u64().unwrap() - 600;
    for (claim, value, why) in [
        ("exp", json!(now - 3_600), "expired"),
        ("exp", json!(null), "no_expiry"),
        ("nbf", json!(now + 3_600), "not_yet_valid"),
        ("aud", json!("others"), "wrong_audience"),
        ("aud", json!(null), "wrong_audience"),
        ("iss", json!(format!("{}/", issuer.url)), "unknown_issuer"),
        ("org", json!(""), "no_tenant"),
    ] {
        let mut claims = claims.clone();
        claims[claim] = value;
        for algorithm in ["PS256", "ES384"] {
            assert_eq!(judged(&pairs.token(algorithm, true, &claims)).await, why, "{claim}");
        }
    }
    assert_eq!(pod.asked(), 0);
}
