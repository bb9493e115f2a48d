//! What it costs to know who asks and to count what they use: a key among ten thousand, a token, a certificate's name; and
//! reserving and settling in four scopes with every kind of limit. Target: a key and its limits 2 us together.

#![expect(clippy::unwrap_used, clippy::unreachable, reason = "a bench may stop where it stands")]

use std::{fs, hint::black_box, sync::Arc, time::UNIX_EPOCH};

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tidegate::{
    admission::{
        Caller, Counts, Credential, Demand, Mode, Moment, PeerCertificate, Plan, Spent, credential, of_certificate,
    },
    clock,
    config::{self, Config, Money},
    keys::{Keyring, hash_of},
    tasks::Tasks,
    telemetry::{Metrics, Rows},
};

const ISSUER: &str = "https://login.example.com";

/// Every limit there is in every scope there is.
const QUOTAS: &str = "
quotas:
  all: &every { requests_per_minute: 1000000000, tokens_per_minute: 1000000000000, input_tokens_per_minute: 1000000000000,
    output_tokens_per_minute: 1000000000000, concurrent_requests: 1000000, budget_per_day: 1000000000, budget_per_month: 1000000000 }
  each_key: *every
  each_tenant: *every
  models: [ { modelName: m, limits: *every } ]
  prices: [ { modelName: m, input_per_million: 0.5, output_per_million: 1.5 } ]
";

fn key(n: usize) -> String {
    format!("a-key-0123456789-0123456789-0123456789-{n:05}")
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letters = |chunk: &[u8]| {
        let bits = chunk.iter().chain(&[0, 0]).take(3).fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        let all = [18, 12, 6, 0].map(|shift| char::from(*LETTERS.get(bits >> shift & 63).unwrap()));
        all.into_iter().take(chunk.len() + 1).collect::<String>()
    };
    bytes.as_ref().chunks(3).map(letters).collect()
}

/// A configuration with ten thousand keys and an issuer, and two tokens of it.
struct Known {
    ring: Arc<Keyring>,
    config: Config,
    tokens: [(&'static str, String); 2],
    _folder: tempfile::TempDir,
    _tasks: Tasks,
    _runtime: tokio::runtime::Runtime,
}

fn known() -> Known {
    let folder = tempfile::tempdir().unwrap();
    let records =
        (0..10_000).map(|n| format!("- {{ id: k{n}, hash: {}, tenant: t{} }}\n", hash_of(key(n).as_bytes()), n % 500));
    fs::write(folder.path().join("keys.yaml"), records.collect::<String>()).unwrap();
    let random = SystemRandom::new();
    let ed = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let (x, y) = p256.public_key().as_ref().get(1..).unwrap().split_at(32);
    let set = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": base64(ed.public_key())},
        {"kty": "EC", "crv": "P-256", "kid": "p", "x": base64(x), "y": base64(y)},
    ]});
    fs::write(folder.path().join("jwks.json"), set.to_string()).unwrap();
    let expires = clock::wall().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
    let claims = json!({"iss": ISSUER, "aud": "tidegate", "sub": "shop", "exp": expires, "name": "x".repeat(300)});
    let signed = |algorithm: &str, kid: &str| {
        let head = json!({"alg": algorithm, "kid": kid, "typ": "JWT"});
        format!("{}.{}", base64(head.to_string()), base64(claims.to_string()))
    };
    let (by_ed, by_p256) = (signed("EdDSA", "e"), signed("ES256", "p"));
    let tokens = [
        ("EdDSA", format!("{by_ed}.{}", base64(ed.sign(by_ed.as_bytes())))),
        ("ES256", format!("{by_p256}.{}", base64(p256.sign(&random, by_p256.as_bytes()).unwrap()))),
    ];
    let text = format!(
        "listeners: [{{ name: main, address: \"127.0.0.1:0\" }}]\npools: [{{ name: pods, endpoints: [{{ url: \"http://127.0.0.1:1\" }}] \
         }}]\nidentity:\n  keys: {{ file: {0}/keys.yaml }}\n  jwt: [{{ issuer: \"{ISSUER}\", audiences: [tidegate], jwks_file: {0}/jwks.json \
         }}]\n  certificates: {{ from: uri, names: [{{ name: \"spiffe://prod/shop/*\", tenant: shop }}] }}\n{QUOTAS}",
        folder.path().display()
    );
    let (config, _) = config::load("bench.yaml", &text).unwrap();
    let (runtime, tasks) = (tokio::runtime::Runtime::new().unwrap(), Tasks::new());
    let entered = runtime.enter();
    let metrics = Arc::new(Metrics::new(Arc::new(Rows::default)));
    // Nobody is asked: the issuer's keys are in a file.
    let tls = || {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        Ok(builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth())
    };
    let ring = Arc::new(Keyring::new(Box::new(tls), &metrics, &tasks));
    ring.follow(ring.read(&config.identity).unwrap().unwrap());
    drop(entered);
    Known { ring, config, tokens, _folder: folder, _tasks: tasks, _runtime: runtime }
}

fn whose(known: &Known, secret: &str) -> Arc<Caller> {
    known.ring.whose(secret, clock::wall()).now_or_never().unwrap().unwrap()
}

fn identity(criterion: &mut Criterion) {
    let known = known();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", key(7_777))).unwrap());
    criterion.bench_function("identity/key", |bencher| {
        bencher.iter(|| {
            let Ok(Credential::Secret(secret)) = credential(black_box(&headers), None, true) else { unreachable!() };
            whose(&known, secret.reveal())
        });
    });
    for (algorithm, token) in &known.tokens {
        criterion.bench_function(&format!("identity/token/{algorithm}"), |bencher| {
            bencher.iter(|| whose(&known, black_box(token)));
        });
    }
    let certificate = PeerCertificate { uris: vec!["spiffe://prod/shop/web".into()], ..PeerCertificate::default() };
    let rule = known.config.identity.certificates.as_ref().unwrap();
    criterion.bench_function("identity/certificate", |bencher| {
        bencher.iter(|| of_certificate(black_box(&certificate), rule).unwrap());
    });
}

fn quotas(criterion: &mut Criterion) {
    let known = known();
    let (quotas, counts, model) = (&known.config.quotas, Counts::default(), Arc::from("m"));
    let now = || Moment { at: clock::now(), unix: clock::wall().duration_since(UNIX_EPOCH).unwrap() };
    let demand = Demand { input: 800, spare: 232, output: 300, cost: Some(Money(1_000)) };
    let spent = Spent { requests: 1, input: 790, output: 120, cost: Money(700) };
    let once = |caller: &Caller| {
        let plan = Plan::of(quotas, caller, Some(&model));
        let granted = counts.reserve(&plan, &demand, Mode::Enforce, &now()).unwrap();
        granted.hold.settle(black_box(&spent), &now());
    };
    let caller = whose(&known, &key(7_777));
    criterion.bench_function("quotas/four scopes", |bencher| bencher.iter(|| once(&caller)));
    let none = config::Quotas::default();
    criterion.bench_function("quotas/none", |bencher| {
        bencher.iter(|| Plan::of(black_box(&none), &caller, Some(&model)).is_empty());
    });
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", key(7_777))).unwrap());
    criterion.bench_function("both", |bencher| {
        bencher.iter(|| {
            let Ok(Credential::Secret(secret)) = credential(black_box(&headers), None, true) else { unreachable!() };
            once(&whose(&known, secret.reveal()));
        });
    });
}

criterion_group!(benches, identity, quotas);
criterion_main!(benches);
