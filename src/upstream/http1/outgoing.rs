//! A request on its way out: its head as bytes of its own, its body as it was given, both in one write.
//!
//! It writes what every pod reads alike: one line, one `host`, one `content-length`, and fields that were checked when
//! they were read. What it cannot write so, it does not write.

use std::{
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, Method, header};
use tokio::io::AsyncWrite;

/// A field's name and value, bytes, when it is guessed how long a head will be: what hyper takes for it. Twice as much
/// for each, so that the head seldom has to grow.
const TYPICAL_FIELD: usize = 30;

/// What a request's head is written from.
#[derive(Debug)]
pub(in crate::upstream) struct RequestHead<'a> {
    /// Method.
    pub(in crate::upstream) method: &'a Method,
    /// What stands before every path of this pod.
    pub(in crate::upstream) base_path: &'a str,
    /// Path and query.
    pub(in crate::upstream) path: &'a str,
    /// Host and port.
    pub(in crate::upstream) host: &'a str,
    /// All other fields. Those that this writes itself are left out of them.
    pub(in crate::upstream) fields: &'a HeaderMap,
    /// In place of the `authorization` among `fields`.
    pub(in crate::upstream) authorization: Option<HeaderValue>,
}

/// A request of which something is still to be sent.
#[derive(Debug)]
pub(in crate::upstream) struct Outgoing {
    head: Bytes,
    body: Bytes,
    any_left: bool,
    for_head_only: bool,
}

impl RequestHead<'_> {
    /// With this body; `None` where target or host would break the line that they stand in.
    pub(in crate::upstream) fn with(&self, body: Bytes) -> Option<Outgoing> {
        let fits = |text: &str| text.bytes().all(|byte| byte > b' ' && byte != 0x7f);
        if ![self.base_path, self.path, self.host].into_iter().all(fits) {
            return None;
        }
        let lines = self.base_path.len() + self.path.len() + self.host.len() + 4 * TYPICAL_FIELD;
        let mut head = Vec::with_capacity(lines + self.fields.len() * 2 * TYPICAL_FIELD);
        for piece in [self.method.as_str(), " ", self.base_path, self.path, " HTTP/1.1\r\nhost: ", self.host, "\r\n"] {
            head.extend_from_slice(piece.as_bytes());
        }
        // Without a body and a meaning for one, a length only makes proxies suspicious (RFC 9110, 8.6).
        let takes_a_body = [Method::POST, Method::PUT, Method::PATCH].contains(self.method);
        if takes_a_body || !body.is_empty() {
            // Writing to memory does not fail.
            _ = write!(head, "content-length: {}\r\n", body.len());
        }
        let given = self.authorization.is_some();
        let ours = |name: &header::HeaderName| {
            *name == header::HOST
                || *name == header::CONTENT_LENGTH
                || *name == header::TRANSFER_ENCODING
                || (given && *name == header::AUTHORIZATION)
        };
        let fields = self.fields.iter().filter(|(name, _)| !ours(name));
        let authorization = self.authorization.as_ref().map(|value| (&header::AUTHORIZATION, value));
        for (name, value) in fields.chain(authorization) {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(piece);
            }
        }
        head.extend_from_slice(b"\r\n");
        let for_head_only = self.method == Method::HEAD;
        Some(Outgoing { head: head.into(), body, any_left: false, for_head_only })
    }
}

impl Outgoing {
    /// Whether the answer has a head and no body, whatever it says.
    pub(super) fn is_for_head_only(&self) -> bool {
        self.for_head_only
    }

    /// Whether any byte was taken.
    pub(super) fn any_left(&self) -> bool {
        self.any_left
    }

    /// Sends as much as is taken. Ready when all was; what was taken is let go.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !(self.head.is_empty() && self.body.is_empty()) {
            let both = [IoSlice::new(&self.head), IoSlice::new(&self.body)];
            let taken = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &both))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.any_left = true;
            let of_head = taken.min(self.head.len());
            self.head.advance(of_head);
            self.body.advance(taken - of_head);
            for part in [&mut self.head, &mut self.body] {
                if part.is_empty() {
                    *part = Bytes::new();
                }
            }
        }
        Pin::new(stream).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head<'a>(method: &'a Method, path: &'a str, fields: &'a HeaderMap) -> RequestHead<'a> {
        RequestHead { method, base_path: "", path, host: "pod:8000", fields, authorization: None }
    }

    fn written(outgoing: &Outgoing) -> String {
        String::from_utf8([&outgoing.head[..], &outgoing.body[..]].concat()).unwrap()
    }

    #[test]
    fn a_request_is_written_with_one_host_one_length_and_its_fields_in_their_order() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            (header::HOST, "evil"),
            (header::CONTENT_LENGTH, "7"),
            (header::TRANSFER_ENCODING, "chunked"),
            (header::ACCEPT, "a"),
            (header::AUTHORIZATION, "Bearer theirs"),
        ] {
            fields.append(name, HeaderValue::from_static(value));
        }
        fields.append("x-odd", HeaderValue::from_bytes(b"one").unwrap());
        fields.append("x-odd", HeaderValue::from_bytes(b"two").unwrap());
        let post = head(&Method::POST, "/v1/x?y=1", &fields);
        assert_eq!(
            written(&post.with("{}".into()).unwrap()),
            "POST /v1/x?y=1 HTTP/1.1\r\nhost: pod:8000\r\ncontent-length: 2\r\naccept: a\r\n\
             authorization: Bearer theirs\r\nx-odd: one\r\nx-odd: two\r\n\r\n{}"
        );
        let token = Some(HeaderValue::from_static("Bearer ours"));
        let with_token = RequestHead { base_path: "/base", authorization: token, ..post };
        assert_eq!(
            written(&with_token.with(Bytes::new()).unwrap()),
            "POST /base/v1/x?y=1 HTTP/1.1\r\nhost: pod:8000\r\ncontent-length: 0\r\naccept: a\r\n\
             x-odd: one\r\nx-odd: two\r\nauthorization: Bearer ours\r\n\r\n"
        );
    }

    #[test]
    fn what_takes_no_body_has_no_length() {
        let none = HeaderMap::new();
        assert_eq!(
            written(&head(&Method::GET, "/x", &none).with(Bytes::new()).unwrap()),
            "GET /x HTTP/1.1\r\nhost: pod:8000\r\n\r\n"
        );
        assert!(written(&head(&Method::DELETE, "/x", &none).with("1".into()).unwrap()).contains("content-length: 1"));
    }

    #[test]
    fn a_target_or_host_that_would_break_its_line_is_not_written() {
        let none = HeaderMap::new();
        for odd in ["/a b", "/a\r\nx: y", "/a\n", "/\u{7f}", "/\0"] {
            assert!(head(&Method::GET, odd, &none).with(Bytes::new()).is_none(), "{odd:?}");
            let base = RequestHead { base_path: odd, ..head(&Method::GET, "/", &none) };
            assert!(base.with(Bytes::new()).is_none());
            let host = RequestHead { host: odd, ..head(&Method::GET, "/", &none) };
            assert!(host.with(Bytes::new()).is_none());
        }
        assert!(head(&Method::GET, "/é%20?a=[1]", &none).with(Bytes::new()).is_some());
    }
}
