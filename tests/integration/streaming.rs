//! Streams: every event on its way as soon as it is there, in the pod's own bytes, to the very end.

use crate::harness::{
    Call, Client, Gateway, RawClient, RawPod, SimPod, chat_stream, events, sse_head, whole_json, within,
};

/// Plays a pod that says one event, waits until the client has read it, and only then says the next.
async fn each_event_arrives_before_the_next_is_said(h2: bool) {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let to = gateway.addr;
    let client = tokio::spawn(async move {
        let client = if h2 { Client::h2(to).await } else { Client::h1(to).await };
        client.send(chat_stream("hi", 9)).await
    });
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let mut reply = within("the head, before any event", client).await.unwrap();
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    // Comments, split events and odd line ends pass as they are.
    let said = [
        "data: {\"id\":\"1\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
        ": ping\n\n",
        "data: {\"id\":\"1\", \"choi",
        "ces\":[{\"delta\":{\"content\":\"b\"}}]}\r\n\r\n",
        "data:  {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: [DONE]\n\n",
    ];
    for text in said {
        asked.chunk(text).await;
        assert_eq!(reply.piece().await.unwrap().unwrap(), text);
    }
    asked.say("0\r\n\r\n").await;
    assert!(reply.piece().await.is_none(), "a clean end");
    gateway.quiet().await;
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_said_over_http1() {
    each_event_arrives_before_the_next_is_said(false).await;
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_said_over_http2() {
    each_event_arrives_before_the_next_is_said(true).await;
}

#[tokio::test]
async fn events_said_together_stay_together() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 2).begin(gateway.addr);
    let mut asked = pod.asked().await;
    let two = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    asked.say(format!("{}{:x}\r\n{two}\r\n0\r\n\r\n", sse_head(), two.len())).await;
    let mut reply = reply.await.unwrap();
    assert_eq!(reply.piece().await.unwrap().unwrap(), two);
    assert!(reply.piece().await.is_none());
}

const WITH_TRAILERS: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntrailer: x-cost\r\n\
    transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-cost: 7\r\n\r\n";

#[tokio::test]
async fn trailers_survive_to_http2_clients() {
    let pod = RawPod::answering(WITH_TRAILERS).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = Client::h2(gateway.addr).await.send(chat_stream("hi", 1)).await;
    let (body, trailers) = reply.collected().await.unwrap();
    assert_eq!((body.as_ref(), &trailers.unwrap()["x-cost"]), (&b"{}"[..], &"7".parse().unwrap()));
}

#[tokio::test]
async fn an_answer_with_trailers_is_complete_and_edited_to_its_end() {
    // The last bytes could be the start of a model's name and are held until the end is known.
    let held = WITH_TRAILERS.replace("2\r\n{}\r\n", "6\r\n{\"mode\r\n");
    let pod = RawPod::answering(held).await;
    let gateway = Gateway::over([pod.endpoint()])
        .models(&["{ modelName: m, poolRef: pods, rewrite_response_model: true }"])
        .start()
        .await;
    let reply = Client::h2(gateway.addr).await.send(chat_stream("hi", 1)).await;
    let (body, trailers) = reply.collected().await.unwrap();
    assert_eq!((body.as_ref(), &trailers.unwrap()["x-cost"]), (&b"{\"mode"[..], &"7".parse().unwrap()));
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 0.0, "nobody left");
    assert_eq!(gateway.running.house.upstream.idle_connections(), 1, "the pod's connection is kept");
}

#[tokio::test]
async fn trailers_survive_to_http1_clients_that_take_them() {
    let pod = RawPod::answering(WITH_TRAILERS).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = RawClient::connect(gateway.addr).await;
    let body = r#"{"model":"m","prompt":"hi"}"#;
    let length = body.len();
    client
        .say(format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: te, close\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
        .await;
    let answer = client.rest().await;
    assert!(answer.ends_with("2\r\n{}\r\n0\r\nx-cost: 7\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn every_dialect_of_a_simulated_pod_comes_to_its_own_end() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let ask = |path: &str, prompt: &str| {
        let body = format!(r#"{{"model":"m","stream":true,"max_tokens":5,"max_output_tokens":5,{prompt}}}"#);
        Call::post(path, body).send(gateway.addr)
    };
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    let openai = ask("/v1/chat/completions", messages).await.text().await;
    assert_eq!(events(&openai).len(), 1 + 5 + 1 + 1);
    assert!(openai.ends_with("data: [DONE]\n\n"));
    let completions = ask("/v1/completions", r#""prompt":"hi""#).await.text().await;
    assert_eq!(events(&completions).len(), 5 + 1 + 1);
    let anthropic = ask("/v1/messages", messages).await.text().await;
    assert!(anthropic.contains("event: message_stop\n"), "{anthropic}");
    let responses = ask("/v1/responses", r#""input":"hi""#).await.text().await;
    assert!(responses.contains("event: response.incomplete\n"), "{responses}");
    for text in [openai, completions, anthropic, responses] {
        assert!(!text.contains("stream_cut"), "{text}");
    }
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 0.0);
}

#[tokio::test]
async fn every_whole_endpoint_of_a_simulated_pod_answers() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    for (path, body) in [
        ("/v1/embeddings", r#"{"model":"m","input":"hi"}"#),
        ("/v1/rerank", r#"{"model":"m","query":"a","documents":["b","c"]}"#),
        ("/rerank", r#"{"model":"m","query":"a","documents":["b","c"]}"#),
        ("/v1/score", r#"{"model":"m","text_1":"a","text_2":"b"}"#),
        ("/tokenize", r#"{"model":"m","prompt":"hi"}"#),
        ("/detokenize", r#"{"model":"m","tokens":[1,2]}"#),
        ("/v1/messages/count_tokens", r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#),
    ] {
        let reply = Call::post(path, body).send(gateway.addr).await;
        assert_eq!(reply.status(), 200, "{path}: {}", reply.text().await);
    }
}

#[tokio::test]
async fn audio_names_its_model_in_a_form_field_which_alone_is_spliced() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()])
        .models(&["{ modelName: whisper, poolRef: pods, targetModels: [{ name: whisper-large-v3 }] }"])
        .start()
        .await;
    let form = |model: &str| {
        format!(
            "--b0\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\u{0}whisper\r\n--b0\r\n\
             Content-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b0--\r\n"
        )
    };
    let call = Call::post("/v1/audio/transcriptions", form("whisper"))
        .header("content-type", "multipart/form-data; boundary=b0");
    let reply = call.begin(gateway.addr);
    let mut asked = pod.asked().await;
    assert_eq!(String::from_utf8_lossy(&asked.body), form("whisper-large-v3"));
    assert_eq!(asked.header("content-type"), Some("multipart/form-data; boundary=b0"));
    asked.say(whole_json("{\"text\":\"hi\"}")).await;
    assert_eq!(reply.await.unwrap().text().await, "{\"text\":\"hi\"}");
}
