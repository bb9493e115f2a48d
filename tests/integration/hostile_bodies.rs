//! Bodies that are large, deep, odd or meant to be read in two ways: what passes reaches the pod byte for byte, and what
//! does not is told so.

use crate::harness::{Call, Exchange, Gateway, RawPod, whole_json, within};

/// Sends `body` and gives what came to the pod.
async fn passed(gateway: &Gateway, pod: &mut RawPod, body: impl Into<Vec<u8>>) -> Exchange {
    let reply = Call::post("/v1/chat/completions", body.into()).begin(gateway.addr);
    let mut asked = within("the request at the pod", pod.asked()).await;
    asked.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
    asked
}

async fn large(bytes: usize) {
    let mut pod = RawPod::start().await;
    let limits = "limits: { body: 600MiB, buffered_bodies: 700MiB }";
    let gateway = Gateway::over([pod.endpoint()]).yaml(limits).start().await;
    let opening = r#"{"model":"m","messages":[{"role":"user","content":""#;
    let mut body = opening.as_bytes().to_vec();
    body.resize(bytes - 4, b'x');
    body.extend_from_slice(br#""}]}"#);
    let asked = passed(&gateway, &mut pod, body.clone()).await;
    assert!(asked.body == body, "{} bytes came of {}", asked.body.len(), body.len());
    drop(asked);
    gateway.quiet().await;
}

#[tokio::test]
async fn sixty_four_mebibytes_pass_as_they_are() {
    large(64 << 20).await;
}

/// `cargo test --release --test integration half_a_gibibyte -- --ignored`
#[tokio::test]
#[ignore = "takes 2 GiB of memory"]
async fn half_a_gibibyte_passes_as_it_is() {
    large(512 << 20).await;
}

#[tokio::test]
async fn what_only_the_engine_has_to_understand_passes_untouched() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let deep = format!(r#"{{"model":"m","messages":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let maps = format!(r#"{{"model":"m","x":{}1{}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    for body in [
        deep.as_str(),
        maps.as_str(),
        r#"{"model":"m","temperature":1e400,"seed":123456789012345678901234567890,"top_p":0.10000000000000000000001}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"\ud800 \udc00\ud83d\ude00 \u0000"}]}"#,
        r#"{"model":"m","messages":"\ud83d"}"#,
        "\r\n\t {\"model\" : \"m\" , \"x\":-0.0e-0}\n\n",
        r#"{"mod\u0065l":"m","stre\u0061m":false}"#,
        r#"{"model":"m","Model":"other","MODEL":"third","models":["x"],"x":{"model":"y","model":"z"}}"#,
        r#"{"model":"m","":1,"\u0000":2,"é":3}"#,
        "{\"model\":\"m\",\"x\":\"\u{feff}\u{2028}\u{fffd}\u{10ffff}\u{7f}\"}",
    ] {
        let asked = passed(&gateway, &mut pod, body).await;
        assert!(asked.body == body.as_bytes(), "{}", String::from_utf8_lossy(&asked.body));
    }
    gateway.quiet().await;
}

#[tokio::test]
async fn what_pods_could_read_otherwise_is_refused() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let utf16 = |text: &str, swap: bool| -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if swap { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    let plain = r#"{"model":"m"}"#;
    for (what, body) in [
        ("UTF-16, little end first", utf16(plain, false)),
        ("UTF-16, big end first", utf16(plain, true)),
        ("UTF-16 with a mark", [b"\xff\xfe".to_vec(), utf16(plain, false)].concat()),
        ("UTF-32", plain.chars().flat_map(|it| u32::from(it).to_le_bytes()).collect()),
        ("a mark", [b"\xef\xbb\xbf", plain.as_bytes()].concat()),
        ("an overlong slash", b"{\"model\":\"m\",\"x\":\"\xc0\xaf\"}".to_vec()),
        ("half a pair in UTF-8", b"{\"model\":\"m\",\"x\":\"\xed\xa0\x80\"}".to_vec()),
        ("a NUL behind", b"{\"model\":\"m\"}\0".to_vec()),
        ("a NUL within", b"{\"model\":\"m\"\0}".to_vec()),
        ("a line feed in a string", b"{\"model\":\"m\",\"x\":\"a\nb\"}".to_vec()),
        ("a comment", b"{\"model\":\"m\"/* */}".to_vec()),
        ("a comma too many", br#"{"model":"m",}"#.to_vec()),
        ("single quotes", br"{'model':'m'}".to_vec()),
        ("NaN", br#"{"model":"m","temperature":NaN}"#.to_vec()),
        ("infinity", br#"{"model":"m","temperature":-Infinity}"#.to_vec()),
        ("a wrong escape", br#"{"model":"m","x":"\x41"}"#.to_vec()),
        ("a key that is half a pair", br#"{"model":"m","\ud800":1}"#.to_vec()),
        ("two models", br#"{"model":"m","model":"n"}"#.to_vec()),
        ("two models, one escaped", br#"{"mod\u0065l":"m","model":"n"}"#.to_vec()),
        ("two streams", br#"{"model":"m","stream":true,"stream":false}"#.to_vec()),
        ("two objects", br#"{"model":"m"}{"model":"n"}"#.to_vec()),
        ("a list around it", br#"[{"model":"m"}]"#.to_vec()),
        ("a model that is half a pair", br#"{"model":"\ud800"}"#.to_vec()),
        ("a model that is a number", br#"{"model":1e400}"#.to_vec()),
        ("a deep list that does not end", [br#"{"model":"m","x":"#.as_slice(), &b"[".repeat(1 << 20)].concat()),
    ] {
        let reply = Call::post("/v1/chat/completions", body).send(gateway.addr).await;
        assert_eq!(reply.header("x-tidegate-refused"), Some("malformed"), "{what}");
        assert_eq!(reply.error(400).await["type"], "invalid_request_error", "{what}");
        assert!(!pod.asked_again(), "{what}");
    }
    gateway.quiet().await;
}

/// A form of these lines.
fn form(lines: &[&str]) -> String {
    lines.join("\r\n")
}

const MODEL: &str = "Content-Disposition: form-data; name=\"model\"";

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn forms_that_pods_could_read_otherwise_are_refused() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let good = form(&["--b", MODEL, "", "m", "--b--", ""]);
    let plain = "multipart/form-data; boundary=b";
    for (what, kind, body) in [
        ("two models", plain, form(&["--b", MODEL, "", "m", "--b", MODEL, "", "n", "--b--", ""])),
        (
            "two models, one a file",
            plain,
            form(&[
                "--b",
                MODEL,
                "",
                "m",
                "--b",
                "Content-Disposition: form-data; name=model; filename=x",
                "",
                "n",
                "--b--",
                "",
            ]),
        ),
        (
            "two names",
            plain,
            form(&[
                "--b",
                "Content-Disposition: form-data; name=\"x\"; name=\"model\"",
                "",
                "m",
                "--b",
                MODEL,
                "",
                "m",
                "--b--",
                "",
            ]),
        ),
        (
            "two dispositions",
            plain,
            form(&["--b", "Content-Disposition: form-data; name=\"x\"", MODEL, "", "m", "--b--", ""]),
        ),
        (
            "a name written in the extended way",
            plain,
            form(&[
                "--b",
                "Content-Disposition: form-data; name*=utf-8''model; name=x",
                "",
                "n",
                "--b",
                MODEL,
                "",
                "m",
                "--b--",
                "",
            ]),
        ),
        ("no last boundary", plain, form(&["--b", MODEL, "", "m"])),
        ("a part that does not end", plain, form(&["--b", MODEL, "", "m", "--b", MODEL])),
        ("something before the first", plain, form(&["preamble", "--b", MODEL, "", "m", "--b--", ""])),
        (
            "something behind the last",
            plain,
            form(&["--b", MODEL, "", "m", "--b--", "--b", MODEL, "", "n", "--b--", ""]),
        ),
        ("line feeds alone", plain, good.replace("\r\n", "\n")),
        ("a folded disposition", plain, good.replace("; name", ";\r\n name")),
        ("another boundary", "multipart/form-data; boundary=c", good.clone()),
        ("two boundaries", "multipart/form-data; boundary=b; boundary=c", good.clone()),
        ("no boundary", "multipart/form-data", good.clone()),
        ("an empty boundary", "multipart/form-data; boundary=\"\"", good.clone()),
        (
            "a boundary too long",
            "multipart/form-data; boundary=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
            good.clone(),
        ),
        ("no form", "application/json", good.clone()),
        (
            "no model",
            plain,
            form(&["--b", "Content-Disposition: form-data; name=\"file\"; filename=a", "", "m", "--b--", ""]),
        ),
    ] {
        let call = Call::post("/v1/audio/transcriptions", body).header("content-type", kind);
        let error = call.send(gateway.addr).await.error(400).await;
        assert_eq!(error["type"], "invalid_request_error", "{what}: {error}");
        assert!(!pod.asked_again(), "{what}");
    }
    let reply = Call::post("/v1/audio/transcriptions", good.clone()).header("content-type", plain).begin(gateway.addr);
    let mut asked = pod.asked().await;
    assert_eq!(asked.body, good.as_bytes());
    asked.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
    gateway.quiet().await;
}
