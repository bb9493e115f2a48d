//! Clients that do not read: what each of them costs in memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::TcpSocket, time::sleep};

use crate::{
    harness::{Gateway, RawPod, sse_head},
    process::memory_mib,
};

const REQUEST: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 71\r\n\r\n\
    {\"model\":\"m\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";

#[tokio::test]
async fn two_hundred_clients_that_do_not_read_ten_megabytes_each_are_no_burden() {
    const CLIENTS: usize = 200;
    let _alone = crate::alone().await;
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let piece: &'static str = Box::leak(format!("data: {{\"x\":\"{}\"}}\n\n", "y".repeat(100_000)).into_boxed_str());
    let whole = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let (before, sent) = (memory_mib(std::process::id()), Arc::new(AtomicUsize::new(0)));
    let (mut clients, mut pods) = (Vec::new(), Vec::new());
    for nth in 0..CLIENTS {
        // A small window, so that what is not read lies with the gateway and not with the client.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        let mut client = socket.connect(gateway.addr).await.unwrap();
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        clients.push(client);
        let (mut asked, sent) = (pod.asked().await, Arc::clone(&sent));
        pods.push(tokio::spawn(async move {
            // Streams are looked into, which takes an unoptimised build long; one in ten is enough.
            asked.say(if nth % 10 == 0 { sse_head() } else { whole }).await;
            for _ in 0..100 {
                asked.chunk(piece).await;
                sent.fetch_add(1, Relaxed);
            }
        }));
    }
    // Until nothing moves any more: it is what did not move that is measured.
    let mut seen = (0, 1);
    while seen.0 != seen.1 {
        sleep(Duration::from_millis(500)).await;
        seen = (seen.1, sent.load(Relaxed));
    }
    let each = (memory_mib(std::process::id()) - before) * 1024.0 / CLIENTS as f64;
    // Measured: 600 KiB, of which a third is the pods' here; without the bound on what is read ahead 1,100.
    assert!(each < 900.0, "{each:.0} KiB each, of 10 MB that nobody reads");
    drop(clients);
    for pod in pods {
        pod.abort();
        _ = pod.await;
    }
    gateway.quiet().await;
}
