//! Listeners that speak TLS: what they show and to whom, how it is replaced while they work, and whom they let in.

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    Call, Client, Gateway, Plan, RawClient, SimPod, chat, chat_stream, eventually,
    lines::{Lines, told},
    papers::{Authority, Paper, Secret, handshake, secure},
    within,
};

const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

/// A gateway over `pod` that shows what `secret` holds.
fn behind_tls(pod: &SimPod, secret: &Secret, more: &str) -> Plan {
    let tls = format!("tls: {{ certificates: [{{ folder: \"{}\" }}]{more} }}", secret.path().display());
    Gateway::over([pod.endpoint()]).main(&tls)
}

/// The first certificate that is shown for `name`.
async fn shown(config: &ClientConfig, gateway: &Gateway, name: &str) -> Vec<u8> {
    let stream = handshake(config, gateway.addr, name).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Waits until `done`, which asks over the network.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let turns = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, turns).await;
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_as_the_client_offers_and_streams_and_bodies_come_whole() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, "").start().await;
    let config = authority.client(None);
    for alpn in [H1, H2] {
        let mut client = secure(&config, gateway.addr, alpn).await.unwrap();
        assert_eq!(client.ask(chat("hi", 1)).await.unwrap().json().await["object"], "chat.completion");
        let stream = client.ask(chat_stream("hi", 200)).await.unwrap();
        assert!(stream.text().await.ends_with("data: [DONE]\n\n"));
        let large = format!(r#"{{"model":"m","prompt":"hi","max_tokens":1,"metadata":"{}"}}"#, "x".repeat(1 << 20));
        assert_eq!(client.ask(Call::post("/v1/completions", large)).await.unwrap().status(), 200);
        let length: usize = pod.state().last.last().unwrap().header("content-length").unwrap().parse().unwrap();
        assert!(length > 1 << 20);
    }
    gateway.quiet().await;
}

#[tokio::test]
async fn each_name_is_shown_its_own_certificate_and_an_unknown_one_the_first() {
    let authority = Authority::new("ours");
    let (first, wild) = (authority.issue(&["localhost"]), authority.issue(&["*.models.example", "models.example"]));
    let (secret, other) = (Secret::of(&first), tempfile::tempdir().unwrap());
    wild.lay(other.path());
    let pod = SimPod::start().await;
    let tls = format!(
        "tls: {{ certificates: [{{ folder: \"{}\" }}, {{ cert_file: \"{1}/tls.crt\", key_file: \"{1}/tls.key\" }}] }}",
        secret.path().display(),
        other.path().display()
    );
    let gateway = Gateway::over([pod.endpoint()]).main(&tls).start().await;
    let config = authority.client(None);
    assert_eq!(shown(&config, &gateway, "localhost").await, first.der().as_ref());
    assert_eq!(shown(&config, &gateway, "a.models.example").await, wild.der().as_ref());
    assert_eq!(shown(&config, &gateway, "models.example").await, wild.der().as_ref());
    let unknown = handshake(&config, gateway.addr, "unknown.example").await.unwrap_err();
    assert!(
        unknown.to_string().contains("not valid for name"),
        "the first is shown, and the client sees that: {unknown}"
    );
}

/// What `openssl s_client` says of a listener.
async fn openssl(gateway: &Gateway, arguments: &str) -> String {
    let command = format!("openssl s_client -connect {} {arguments}", gateway.addr);
    let run = move || Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().unwrap();
    let output = within("openssl", tokio::task::spawn_blocking(run)).await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The same of a client that asks for the models and reads until it is let go.
async fn openssl_asking(gateway: &Gateway, arguments: &str) -> String {
    let request = r"printf 'GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n'";
    let command = format!("{request} | openssl s_client -ign_eof -connect {} {arguments} 2>&1", gateway.addr);
    let run = move || Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().unwrap();
    let output = within("openssl", tokio::task::spawn_blocking(run)).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn openssl_is_spoken_to_in_modern_versions_alone() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, "").start().await;
    let newest = behind_tls(&pod, &secret, ", min_version: \"1.3\"").start().await;
    let spoken = |text: &str, version: &str| {
        text.contains(&format!("New, {version}, Cipher is TLS_"))
            || text.contains(&format!("New, {version}, Cipher is ECDHE"))
    };
    assert!(spoken(&openssl(&gateway, "-tls1_3").await, "TLSv1.3"));
    assert!(spoken(&openssl(&gateway, "-tls1_2").await, "TLSv1.2"));
    assert!(spoken(&openssl(&newest, "-tls1_3").await, "TLSv1.3"));
    for (gateway, old) in [(&newest, "-tls1_2"), (&gateway, "-tls1_1"), (&gateway, "-tls1")] {
        // Debian's own policy would not let it offer these.
        let said = openssl(gateway, &format!("{old} -cipher DEFAULT@SECLEVEL=0")).await;
        assert!(said.contains("Cipher is (NONE)"), "{old}: {said}");
        assert!(said.contains("alert"), "{old}: {said}");
    }
    for weak in ["AES128-SHA", "AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "NULL", "aNULL"] {
        let said = openssl(&gateway, &format!("-tls1_2 -cipher {weak}:@SECLEVEL=0")).await;
        assert!(said.contains("Cipher is (NONE)"), "{weak}: {said}");
    }
    for (offered, chosen) in [("h2,http/1.1", "h2"), ("http/1.1", "http/1.1")] {
        let said = openssl(&gateway, &format!("-alpn {offered}")).await;
        assert!(said.contains(&format!("ALPN protocol: {chosen}")), "{said}");
    }
    let said = openssl(&gateway, "-alpn spdy/3").await;
    assert!(said.contains("no application protocol"), "{said}");
    let renegotiation = openssl(&gateway, "-tls1_2").await;
    assert!(renegotiation.contains("Secure Renegotiation IS supported"), "{renegotiation}");
    assert!(renegotiation.contains("Compression: NONE"), "{renegotiation}");
}

#[tokio::test]
async fn certificates_are_replaced_under_load_and_nobody_notices() {
    let authority = Authority::new("ours");
    let mut secret = Secret::of(&authority.issue(&["localhost"]));
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, "").start().await;
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let config = authority.client(None);
    let clients = [H1, H2, H1, H2].map(|alpn| {
        let (config, over, served, to) = (config.clone(), Arc::clone(&over), Arc::clone(&served), gateway.addr);
        tokio::spawn(async move {
            while !over.load(Relaxed) {
                let mut client = secure(&config, to, alpn).await.expect("a handshake");
                for _ in 0..2 {
                    assert_eq!(client.ask(chat("hi", 1)).await.expect("an answer").status(), 200);
                    served.fetch_add(1, Relaxed);
                }
            }
        })
    });
    // One connection that lives through it all.
    let mut patient = secure(&config, gateway.addr, H2).await.unwrap();
    for _ in 0..3 {
        let next = authority.issue(&["localhost"]);
        secret.swap(&next);
        until("the new certificate to be shown", async || {
            // One that remembers no session: who resumes is shown nothing.
            shown(&authority.client(None), &gateway, "localhost").await == next.der().as_ref()
        })
        .await;
        assert_eq!(patient.ask(chat("hi", 1)).await.unwrap().status(), 200);
    }
    over.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(served.load(Relaxed) > 20);
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &[]).await, 0.0);
    gateway.quiet().await;
}

#[tokio::test]
async fn a_broken_certificate_leaves_the_one_before_and_is_told() {
    let authority = Authority::new("ours");
    let (first, other) = (authority.issue(&["localhost"]), authority.issue(&["localhost"]));
    let mut secret = Secret::of(&first);
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, "").start().await;
    let mut mixed = other.clone();
    mixed.key = first.key.clone();
    secret.swap(&mixed);
    until("the failure to be counted", async || {
        gateway.counted("tidegate_certificate_reload_failures_total", &["listener=\"main\"", "tls.crt"]).await == 1.0
    })
    .await;
    assert_eq!(shown(&authority.client(None), &gateway, "localhost").await, first.der().as_ref());
    let ends = gateway.counted("tidegate_certificate_not_after_seconds", &["listener=\"main\"", "tls.crt"]).await;
    assert!(ends > 1.7e9, "{ends}");
    secret.swap(&other);
    until("the sound one to be shown", async || {
        shown(&authority.client(None), &gateway, "localhost").await == other.der().as_ref()
    })
    .await;
    assert_eq!(gateway.counted("tidegate_certificate_reload_failures_total", &[]).await, 1.0);
}

/// Whether a client that shows this is let in: a refusal comes with TLS 1.3 only after the client thinks it is through.
async fn is_let_in(config: &ClientConfig, gateway: &Gateway) -> bool {
    match secure(config, gateway.addr, H1).await {
        Ok(mut client) => client.ask(chat("hi", 1)).await.is_ok_and(|reply| reply.status() == 200),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_certificate_whose_name_nobody_knows_is_named_in_the_log() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let folder = tempfile::tempdir().unwrap();
    let asked = format!(", client_certificates: {{ ca_file: \"{}\" }}", authority.written(folder.path()).display());
    let pod = SimPod::start().await;
    let known = "identity: { certificates: { from: uri, names: [{ name: \"spiffe://a/shop\", tenant: shop }] } }";
    let (lines, _guard) = Lines::kept();
    let gateway = behind_tls(&pod, &secret, &asked).yaml(known).start().await;
    let shop = authority.issue(&["spiffe://a/shop"]);
    let bank = authority.issue(&["spiffe://a/bank", "shop.example"]);
    for (paper, status, expected) in
        [(&shop, 200, ["shop", "", ""]), (&bank, 401, ["", "spiffe://a/bank", "unknown_certificate_name"])]
    {
        let mut client = secure(&authority.client(Some(paper)), gateway.addr, H1).await.unwrap();
        assert_eq!(client.ask(chat("hi", 1)).await.unwrap().status(), status);
        assert_eq!(told(&lines.one(&gateway).await, ["tenant", "certificate", "reason"]), expected);
    }
}

#[tokio::test]
async fn clients_show_certificates_of_their_authority_or_stay_outside_also_after_it_was_replaced() {
    let (server, ours, others) = (Authority::new("server"), Authority::new("ours"), Authority::new("others"));
    let secret = Secret::of(&server.issue(&["localhost"]));
    let folder = tempfile::tempdir().unwrap();
    let file = ours.written(folder.path());
    let asked =
        |required: bool| format!(", client_certificates: {{ ca_file: \"{}\", required: {required} }}", file.display());
    let pod = SimPod::start().await;
    let (lines, _guard) = Lines::kept();
    let strict = behind_tls(&pod, &secret, &asked(true)).start().await;
    let lenient = behind_tls(&pod, &secret, &asked(false)).start().await;
    let [mine, theirs] = [&ours, &others].map(|authority| {
        let paper = authority.issue(&["shop.example", "spiffe://cluster/ns/a/sa/shop", "shop@example.com"]);
        server.client(Some(&paper))
    });
    let nothing = server.client(None);
    assert!(is_let_in(&mine, &strict).await && is_let_in(&mine, &lenient).await);
    assert!(!is_let_in(&theirs, &strict).await && !is_let_in(&theirs, &lenient).await);
    assert!(!is_let_in(&nothing, &strict).await);
    assert!(is_let_in(&nothing, &lenient).await, "it need not show one");
    let refused = strict.counted("tidegate_edge_rejected_total", &["tls_failed"]).await;
    assert_eq!(refused, 2.0);
    let turned_away =
        || lines.warnings().into_iter().filter(|line| line["message"].contains("turned away")).collect::<Vec<_>>();
    let causes: Vec<_> = turned_away().iter().map(|line| told(line, ["reason", "cause"])).collect();
    let cause = "none of the authorities in `ca_file` vouches for its certificate";
    assert_eq!(causes, vec![["client_certificate", cause]; 2], "once at each listener, and no more within a minute");

    // `mine` remembers sessions; none may be of use once its authority is gone.
    fs::write(&file, &others.pem).unwrap();
    until("the new authority to count", async || is_let_in(&theirs, &strict).await).await;
    assert!(!is_let_in(&mine, &strict).await);
    until("the same at the other", async || is_let_in(&theirs, &lenient).await).await;
    assert!(!is_let_in(&mine, &lenient).await);
}

#[tokio::test]
async fn who_is_slow_to_begin_is_let_go_and_who_speaks_clear_text_is_told_so() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, "").yaml("timeouts: { header_read: 300ms }").start().await;
    let mut silent = RawClient::connect(gateway.addr).await;
    let mut half = RawClient::connect(gateway.addr).await;
    half.say([22, 3, 1, 0, 200, 1, 0]).await;
    assert_eq!((silent.rest().await, half.rest().await), (String::new(), String::new()));
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["silent"]).await, 2.0);

    let error = chat("hi", 1).send(gateway.addr).await.error(400).await;
    assert_eq!(error["code"], "tls_required");
    assert!(error["message"].as_str().unwrap().contains("https://"), "{error}");
    let mut raw = RawClient::connect(gateway.addr).await;
    raw.say(
        [b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n", &vec![b'x'; 30_000][..]]
            .concat(),
    )
    .await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 400 Bad Request\r\n"), "also who goes on speaking hears it");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["clear_text"]).await, 2.0);
    let mut noise = RawClient::connect(gateway.addr).await;
    noise.say([0, 1, 2, 3, 4, 5, 6, 7]).await;
    noise.rest().await;
    until("noise to be counted", async || {
        gateway.counted("tidegate_edge_rejected_total", &["clear_text"]).await == 3.0
    })
    .await;
    assert_eq!(pod.asked(), 0);
}

#[tokio::test]
async fn a_stop_ends_connections_with_the_words_of_tls_and_lets_streams_end() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, "").start().await;
    let config = authority.client(None);
    let mut h1 = config.clone();
    h1.alpn_protocols = vec![H1.to_vec()];
    let mut idle = handshake(&h1, gateway.addr, "localhost").await.unwrap();
    idle.write_all(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 1024];
    assert!(within("an answer", idle.read(&mut some)).await.unwrap() > 0);
    let mut two = secure(&config, gateway.addr, H2).await.unwrap();
    let stream = two.begin_stream(chat_stream("hi", 300));
    eventually("the stream to begin", || pod.asked() == 1).await;
    let stopping = tokio::spawn(gateway.stop(Duration::from_secs(20)));
    // Without TLS's own goodbye this would be an error: anybody on the way could have cut it.
    let mut rest = Vec::new();
    within("the end", idle.read_to_end(&mut rest)).await.unwrap();
    let stream = stream.await.unwrap();
    assert!(stream.text().await.ends_with("data: [DONE]\n\n"), "what had begun may end");
    two.closed().await;
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_keeps_the_gateway_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "listeners: [{{ name: main, address: 127.0.0.1:0, tls: {{ certificates: [{{ folder: \"{}\" }}] }} }}]\n\
         pools: [{{ name: p, endpoints: [{{ url: \"http://127.0.0.1:1\" }}] }}]\nadmin: {{ address: 127.0.0.1:0 }}\n",
        folder.path().display()
    );
    let (config, _) = tidegate::config::load("t", &text).unwrap();
    let error = anyhow::Error::new(tidegate::app::start(config).await.unwrap_err());
    let told = format!("{error:#}");
    assert!(told.contains("'main'") && told.contains("tls.crt"), "{told}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_through_tls_stops_its_pod() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let mut pod = crate::harness::RawPod::start().await;
    let tls = format!("tls: {{ certificates: [{{ folder: \"{}\" }}] }}", secret.path().display());
    let gateway = Gateway::over([pod.endpoint()]).main(&tls).yaml("timeouts: { write_stall: 300ms }").start().await;
    for alpn in [H1, H2] {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(128 << 10).unwrap();
        let stream: TcpStream = socket.connect(gateway.addr).await.unwrap();
        let mut config = authority.client(None);
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = crate::harness::papers::shake(&config, stream, "localhost").await.unwrap();
        let client = Client::speaking(stream, gateway.addr, alpn == H2).await.unwrap();
        let asking =
            tokio::spawn(client.send(Call::post("/v1/completions", r#"{"model":"m","prompt":"hi","stream":true}"#)));
        let mut asked = pod.asked().await;
        asked.say(crate::harness::sse_head()).await;
        let _unread = asking.await.unwrap();
        let event = format!("data: {{\"choices\":[{{\"text\":\"{}\"}}]}}\n\n", "x".repeat(1000));
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        let mut poured = 0;
        while asked.try_say(&chunk, Duration::from_secs(10)).await {
            poured += chunk.len();
        }
        assert!(poured < 24 << 20, "{poured} bytes were taken for a client that reads none");
        asked.abandoned().await;
    }
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["write_stall"]).await, 2.0);
}

#[tokio::test]
async fn openssl_is_shown_the_certificate_for_the_name_it_asks_for() {
    let authority = Authority::new("ours");
    let (secret, other, folder) = (
        Secret::of(&authority.issue(&["localhost"])),
        Secret::of(&authority.issue(&["*.models.example"])),
        tempfile::tempdir().unwrap(),
    );
    let pod = SimPod::start().await;
    let more = format!("{{ folder: \"{}\" }}]", other.path().display());
    let tls = format!("tls: {{ certificates: [{{ folder: \"{}\" }}, {more} }}", secret.path().display());
    let gateway = Gateway::over([pod.endpoint()]).main(&tls).start().await;
    let file = authority.written(folder.path());
    for (asked, judged_for, is_well) in [
        ("-servername localhost", "localhost", true),
        ("-servername a.models.example", "a.models.example", true),
        ("-servername A.Models.Example", "a.models.example", true),
        ("-servername a.models.example", "localhost", false),
        // Nobody's name, and none at all: the first.
        ("-servername a.b.models.example", "localhost", true),
        ("-noservername", "localhost", true),
        ("-noservername", "a.models.example", false),
    ] {
        let judging = format!("-CAfile {} -verify_hostname {judged_for}", file.display());
        let said = openssl(&gateway, &format!("{asked} {judging}")).await;
        assert_eq!(said.contains("Verification: OK"), is_well, "{asked} for {judged_for}: {said}");
        assert_eq!(said.contains("Hostname mismatch") || said.contains("hostname mismatch"), !is_well, "{said}");
    }
}

#[tokio::test]
async fn openssl_is_told_which_certificates_count_and_why_its_own_does_not() {
    let (server, ours, others) = (Authority::new("server"), Authority::new("ours"), Authority::new("others"));
    let (secret, folder) = (Secret::of(&server.issue(&["localhost"])), tempfile::tempdir().unwrap());
    let [mine, theirs] = [("mine", &ours), ("theirs", &others)].map(|(name, authority)| {
        let lies = folder.path().join(name);
        authority.issue(&["shop.example"]).lay(&lies);
        format!("-cert {0}/tls.crt -key {0}/tls.key", lies.display())
    });
    let asked =
        format!(", client_certificates: {{ ca_file: \"{}\", required: true }}", ours.written(folder.path()).display());
    let pod = SimPod::start().await;
    let gateway = behind_tls(&pod, &secret, &asked).start().await;
    for version in ["-tls1_3", "-tls1_2"] {
        // With TLS 1.3 a client hears that it is refused only when it reads.
        let ask = async |more: &str| openssl_asking(&gateway, &format!("{version} {more}")).await;
        let said = ask(&mine).await;
        assert!(said.contains("HTTP/1.1 200 OK"), "{version}: {said}");
        for (shown, why) in [(&*theirs, "unknown ca"), ("", "certificate required")] {
            let said = ask(shown).await;
            // TLS 1.2 has no word for a certificate that lacks.
            let why = if version == "-tls1_2" && shown.is_empty() { "alert" } else { why };
            assert!(said.contains(why) && !said.contains("HTTP/1.1"), "{version} {shown}: {said}");
        }
    }
    let said = openssl(&gateway, &mine).await;
    let (_, named) = said.split_once("Acceptable client certificate CA names").expect("it is asked for one");
    assert!(named.lines().nth(1).unwrap().contains("ours"), "{said}");
}

#[tokio::test]
async fn who_a_client_is_its_certificate_says_and_no_header() {
    let (lines, _guard) = Lines::kept();
    let (server, ours) = (Authority::new("server"), Authority::new("ours"));
    let secret = Secret::of(&server.issue(&["localhost"]));
    let folder = tempfile::tempdir().unwrap();
    let asked =
        format!(", client_certificates: {{ ca_file: \"{}\", required: true }}", ours.written(folder.path()).display());
    let names = "{ name: \"spiffe://prod/shop/*\", tenant: shop, priority: 3 }, \
                 { name: \"spiffe://prod/bank\", tenant: bank, models: [other] }";
    let pod = SimPod::start().await;
    let plan = |rule: &str, more: &str| {
        behind_tls(&pod, &secret, &asked).yaml(&format!("identity: {{ certificates: {{ {rule} }}{more} }}"))
    };
    let gateway = plan(&format!("from: uri, names: [{names}]"), "")
        .yaml("quotas: { tenants: [{ name: shop, limits: { requests_per_minute: 2 } }] }")
        .start()
        .await;
    let ask = async |gateway: &Gateway, names: &[&str], alpn: &[u8], call: Call| {
        let mut client = secure(&server.client(Some(&ours.issue(names))), gateway.addr, alpn).await.unwrap();
        let reply = client.ask(call).await.unwrap();
        let status = reply.status();
        drop((reply, client));
        let [tenant, key, reason] = told(&lines.one(gateway).await, ["tenant", "key", "reason"]);
        (status, tenant, key, reason)
    };
    let is =
        |status: u16, [tenant, key, reason]: [&str; 3]| (status, tenant.to_owned(), key.to_owned(), reason.to_owned());
    let web = ["a.example", "spiffe://prod/shop/web"];
    let shop = is(200, ["shop", "spiffe://prod/shop/web", ""]);
    assert_eq!(ask(&gateway, &web, H1, chat("hi", 1)).await, shop);
    // What it says of itself in headers is no matter; nor is a key, where no keys are known.
    let pretends = chat("hi", 1)
        .header("x-gateway-inference-fairness-id", "bank")
        .header("x-ssl-client-s-dn", "CN=bank")
        .header("x-forwarded-client-cert", "URI=spiffe://prod/bank")
        .header("authorization", "Bearer some-key-0123456789-0123456789-0123456789");
    assert_eq!(ask(&gateway, &web, H2, pretends).await, shop);
    let spent = ask(&gateway, &web, H1, chat("hi", 1)).await;
    assert_eq!((spent.0, &*spent.1), (429, "shop"), "its tenant's limits are its own");
    let bank = ask(&gateway, &["spiffe://prod/bank"], H1, chat("hi", 1)).await;
    assert_eq!((bank.0, &*bank.1), (403, "bank"), "and so are its models");
    let both = ["spiffe://prod/bank", "spiffe://prod/shop/web"];
    for names in [&["shop.example"][..], &["spiffe://prod/shopping"], &both] {
        let nobody = is(401, ["", "", "unknown_certificate_name"]);
        assert_eq!(ask(&gateway, names, H2, chat("hi", 1)).await, nobody, "{names:?}");
    }
    // Each name a tenant of its own, and a key before a certificate.
    let keys = crate::identifying::KeyFile::of(&[("some-key-0123456789-0123456789-0123456789", ", tenant: keyed")]);
    let section = format!(", keys: {{ file: {} }}", keys.path.display());
    let gateway = plan("from: dns", &section).start().await;
    assert_eq!(ask(&gateway, &web, H1, chat("hi", 1)).await, is(200, ["a.example", "", ""]));
    let keyed = chat("hi", 1).header("x-api-key", "some-key-0123456789-0123456789-0123456789");
    assert_eq!(ask(&gateway, &web, H1, keyed).await, is(200, ["keyed", "id-so", ""]));
    let wrong = chat("hi", 1).header("x-api-key", "wrong-key-0123456789-0123456789-0123456789");
    assert_eq!(ask(&gateway, &web, H1, wrong).await, is(401, ["", "", "unknown_key"]), "what is shown is judged");
}

#[tokio::test]
async fn at_envoys_door_too_only_certificates_of_the_authority_count() {
    let (server, ours, others) = (Authority::new("server"), Authority::new("ours"), Authority::new("others"));
    let (secret, folder) = (Secret::of(&server.issue(&["localhost"])), tempfile::tempdir().unwrap());
    let pod = SimPod::start().await;
    let door = format!(
        "{{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: {{ cert_path: \"{}\", client_certificates: {{ \
         ca_file: \"{}\", required: true }} }} }}",
        secret.path().display(),
        ours.written(folder.path()).display()
    );
    let gateway = Gateway::over([pod.endpoint()]).listener(&door).start().await;
    let door = gateway.running.listeners[1].1;
    let is_let_in = async |paper: Option<&Paper>| {
        let Ok(mut client) = secure(&server.client(paper), door, H2).await else { return false };
        let health = Call::post("/grpc.health.v1.Health/Check", vec![0; 5]).header("content-type", "application/grpc");
        client.ask(health.header("te", "trailers")).await.is_ok_and(|reply| reply.status() == 200)
    };
    let [mine, theirs] = [&ours, &others].map(|authority| authority.issue(&["envoy"]));
    assert!(is_let_in(Some(&mine)).await);
    assert!(!is_let_in(Some(&theirs)).await);
    assert!(!is_let_in(None).await);
}
