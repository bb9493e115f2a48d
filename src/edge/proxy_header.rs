//! The PROXY protocol, versions 1 and 2: what a balancer writes before its client's first byte, to say whose it is.
//!
//! Read to its last byte and not one further, so that what follows is read by whoever comes next. Whether it is believed
//! is not decided here: it must not even be looked for at a connection that just anybody may have made.

use std::{io, net::SocketAddr};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest text header, its line end included (the specification's 2.1).
const LONGEST_TEXT: usize = 107;

/// A binary header begins with 16 bytes that say how many follow...
const BINARY_HEAD: usize = 16;

/// ... and of those no more than this is read: addresses take 36 bytes, what clouds add (endpoint ids, names) some
/// hundred; the specification says that a receiver need not take more than 520 in all.
const LONGEST_BINARY: usize = 4 << 10;

/// As long as both kinds are at least, so that they can be told apart.
const SHORTEST: usize = 12;

/// Reads a header: the client that it names, or `None` where the balancer speaks for itself (a health check), or for what
/// has no address.
///
/// # Errors
/// If there is none, or it is broken or too long; `UnexpectedEof` if nothing came at all.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::with_capacity(LONGEST_TEXT);
    header.push(stream.read_u8().await?);
    let all_of_it = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => broken("it ends early"),
        _ => error,
    };
    further(stream, &mut header, SHORTEST).await.map_err(all_of_it)?;
    if header == v2::PROTOCOL_PREFIX {
        further(stream, &mut header, BINARY_HEAD).await.map_err(all_of_it)?;
        let length = header.last_chunk::<2>().map_or(0, |it| usize::from(u16::from_be_bytes(*it)));
        if length > LONGEST_BINARY {
            return Err(broken("it is too long"));
        }
        further(stream, &mut header, BINARY_HEAD + length).await.map_err(all_of_it)?;
        return binary(&header);
    }
    if !header.starts_with(b"PROXY ") {
        return Err(broken("there is none"));
    }
    // A byte at a time: what follows the line is not ours.
    while !header.ends_with(b"\r\n") {
        if header.len() >= LONGEST_TEXT {
            return Err(broken("it is too long"));
        }
        header.push(stream.read_u8().await.map_err(all_of_it)?);
    }
    text(&header)
}

/// Reads on until the header has that length.
async fn further<S: AsyncRead + Unpin>(stream: &mut S, header: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let mut read = header.len();
    header.resize(length.max(read), 0);
    while let Some(room) = header.get_mut(read..).filter(|room| !room.is_empty()) {
        match stream.read(room).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
    }
    Ok(())
}

fn text(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let parsed = v1::Header::try_from(header).map_err(broken)?;
    Ok(match parsed.addresses {
        v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

fn binary(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    let parsed = v2::Header::try_from(header).map_err(broken)?;
    // A receiver must take its own word for who called then (2.2).
    if parsed.command == v2::Command::Local {
        return Ok(None);
    }
    Ok(match parsed.addresses {
        v2::Addresses::IPv4(it) => Some((it.source_address, it.source_port).into()),
        v2::Addresses::IPv6(it) => Some((it.source_address, it.source_port).into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    })
}

fn broken(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no PROXY protocol: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a header of these bytes, and what is left behind it.
    fn read_of(bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let mut rest = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(read(&mut rest));
        (read, rest.to_vec())
    }

    /// A binary header by the specification's 2.2, and not by the crate that reads it.
    fn binary_header(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
        header.extend(addresses);
        header
    }

    #[test]
    fn the_client_is_who_the_header_names_and_what_follows_is_left() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x30, 0x39, 1, 0xbb];
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        v6[15] = 1;
        v6[32..34].copy_from_slice(&80_u16.to_be_bytes());
        let with_more = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 12345 443\r\n".to_vec(), Some("192.0.2.1:12345")),
            (b"PROXY TCP6 2001:db8::1 ::1 80 443\r\n".to_vec(), Some("[2001:db8::1]:80")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary_header(1, 0x11, &v4), Some("192.0.2.1:12345")),
            (binary_header(1, 0x11, &with_more), Some("192.0.2.1:12345")),
            (binary_header(1, 0x21, &v6), Some("[2001:db8::1]:80")),
            (binary_header(0, 0x11, &v4), None),
            (binary_header(0, 0, &[]), None),
            (binary_header(1, 0, &[]), None),
            (binary_header(1, 0x31, &[0; 216]), None),
        ] {
            let (read, rest) = read_of(&[&header[..], b"GET / HTTP/1.1\r\n"].concat());
            assert_eq!(read.unwrap(), client.map(|it| it.parse().unwrap()), "{header:?}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}");
            for cut in 1..header.len() {
                let error = read_of(&header[..cut]).0.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{cut} of {header:?}");
            }
        }
        assert_eq!(read_of(b"").0.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "nobody said anything");
    }

    #[test]
    fn what_is_no_header_is_none() {
        let long = format!("PROXY TCP4 {} 10.0.0.1 1 2\r\n", "1".repeat(200));
        let huge = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &vec![0; 70_000]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.1 10.0.0.1 12345\r\n",
            b"PROXY TCP4 192.0.2.300 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 66000 2\r\n",
            b"proxy tcp4 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n",
            long.as_bytes(),
            &huge,
            &binary_header(2, 0x11, &[0; 12]),
            &binary_header(1, 0x11, &[0; 11]),
            &binary_header(1, 0x51, &[0; 12]),
        ] {
            assert_eq!(read_of(bytes).0.unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm_and_never_beyond_the_bound(
            text in any::<bool>(), bytes in proptest::collection::vec(any::<u8>(), 0..6_000),
        ) {
            let prefix = if text { &b"PROXY "[..] } else { v2::PROTOCOL_PREFIX };
            let bytes = [prefix, &bytes].concat();
            let (_, rest) = read_of(&bytes);
            prop_assert!(bytes.len() - rest.len() <= BINARY_HEAD + LONGEST_BINARY);
            prop_assert!(bytes.ends_with(&rest));
        }
    }
}
