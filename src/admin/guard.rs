//! Who may look at the operator's pages: whoever shows the token, where one is asked for, and no page of somebody else's in
//! an operator's browser.
//!
//! A browser carries requests for any page that it shows: to `localhost`, and to a name that its owner points at a private
//! address (DNS rebinding). Such requests betray themselves by `Host`, `Origin` or `Sec-Fetch-Site`. Probes are asked by
//! machines that have no token and learn one word; everything else tells of the fleet.

use std::{fmt, io, path::PathBuf, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use subtle::ConstantTimeEq as _;

use crate::{clock, config, keys::ENOUGH, scrape::Token};

/// What kubelet and load balancers ask, by whatever name; they tell nothing but whether we are there.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// The guard of one listener.
#[derive(Clone)]
pub struct Guard(Arc<Rules>);

struct Rules {
    token: Option<Token>,
    hosts: Vec<String>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("hosts", &self.0.hosts).finish_non_exhaustive()
    }
}

/// Why a token file is of no use. The system's own words are the error's source.
#[derive(Debug, thiserror::Error)]
pub enum BadTokenFile {
    /// It is not there, or not ours to read.
    #[error(
        "{} cannot be read (make one with `openssl rand -hex 32`; it must be readable by the user that the gateway runs as)",
        path.display()
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could be guessed.
    #[error("{} has {length} characters, and a token of less than {ENOUGH} can be guessed (make one with `openssl rand -hex 32`)", path.display())]
    Short {
        /// Which.
        path: PathBuf,
        /// How long it is.
        length: usize,
    },
}

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Stop {
    #[error("this address is not known by that name: call it by its IP address, or add the name to `admin.hosts`")]
    Host,
    #[error("a page of another origin may not ask here")]
    Origin,
    #[error("this needs the admin listener's token: `Authorization: Bearer ...`, with what is in `admin.token_file`")]
    Token,
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::Token => StatusCode::UNAUTHORIZED,
        };
        let mut response = (status, format!("{self}\n")).into_response();
        if self == Self::Token {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl Guard {
    /// As the configuration says. A token that is rotated later is taken over if it could have been had at the start.
    ///
    /// # Errors
    /// If the token cannot be read, or could be guessed.
    pub fn new(admin: &config::Admin) -> Result<Self, BadTokenFile> {
        let token = admin.token_file.as_deref().map(|file| {
            let text = std::fs::read_to_string(file);
            let text = text.map_err(|source| BadTokenFile::Unreadable { path: file.to_owned(), source })?;
            match text.trim().len() {
                length if length < ENOUGH => Err(BadTokenFile::Short { path: file.to_owned(), length }),
                _ => Ok(Token::of_at_least(ENOUGH, file)),
            }
        });
        Ok(Self(Arc::new(Rules { token: token.transpose()?, hosts: admin.hosts.clone() })))
    }

    async fn judge(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Stop> {
        if OPEN.contains(&uri.path()) {
            return Ok(());
        }
        let called = called(uri, headers).filter(|called| self.0.goes_by(called)).ok_or(Stop::Host)?;
        if !is_of(&called, headers) {
            return Err(Stop::Origin);
        }
        let Some(token) = &self.0.token else { return Ok(()) };
        // A file that could not be read since the start lets nobody in.
        let wanted = token.header(clock::now()).await.ok_or(Stop::Token)?;
        let mut shown = headers.get_all(header::AUTHORIZATION).iter();
        match (shown.next(), shown.next()) {
            (Some(shown), None) if bool::from(shown.as_bytes().ct_eq(wanted.as_bytes())) => Ok(()),
            _ => Err(Stop::Token),
        }
    }
}

impl Rules {
    /// Whether this is a name of ours, and not one that somebody else has pointed here.
    fn goes_by(&self, called: &Authority) -> bool {
        let host = called.host().to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<std::net::IpAddr>().is_ok() || bare == "localhost" || self.hosts.iter().any(|it| *it == bare)
    }
}

/// By which name it is called: HTTP/2 says it in the target, HTTP/1.1 in one header.
fn called(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    if let Some(authority) = uri.authority() {
        return Some(authority.clone());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none())?;
    let authority = Authority::try_from(host.as_bytes()).ok()?;
    (!authority.as_str().contains('@')).then_some(authority)
}

/// Whether it comes from a page of this very address, or from no page.
fn is_of(called: &Authority, headers: &HeaderMap) -> bool {
    // A link that somebody follows says so as well: what it leads to is shown to them alone, but it may ask for much.
    let site = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin" || site == "none");
    let same = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|text| text.split_once("://"));
        origin.is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(called.as_str()))
    };
    site && headers.get_all(header::ORIGIN).iter().all(same)
}

/// Lets through whom the guard lets through.
pub(super) async fn check(State(guard): State<Guard>, request: Request<Body>, next: Next) -> Response {
    match guard.judge(request.uri(), request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(stop) => stop.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn guard(token_file: Option<&std::path::Path>) -> Guard {
        opened(token_file).unwrap()
    }

    fn opened(token_file: Option<&std::path::Path>) -> Result<Guard, BadTokenFile> {
        Guard::new(&config::Admin {
            address: ([127, 0, 0, 1], 9090).into(),
            token_file: token_file.map(Into::into),
            hosts: vec!["tidegate.example.net".to_owned()],
        })
    }

    async fn judged(guard: &Guard, path: &str, fields: &[(&str, &str)]) -> Result<(), Stop> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        guard.judge(&path.parse().unwrap(), &headers).await
    }

    #[tokio::test]
    async fn names_that_somebody_may_have_pointed_here_are_not_ours() {
        let guard = guard(None);
        for host in
            ["127.0.0.1:9090", "10.1.2.3:9090", "[::1]:9090", "localhost", "LocalHost:9090", "tidegate.example.net"]
        {
            assert_eq!(judged(&guard, "/debug/fleet", &[("host", host)]).await, Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "a/b",
            "u@localhost",
        ] {
            assert_eq!(judged(&guard, "/debug/fleet", &[("host", host)]).await, Err(Stop::Host), "{host}");
        }
        assert_eq!(judged(&guard, "/", &[]).await, Err(Stop::Host));
        assert_eq!(judged(&guard, "/", &[("host", "localhost"), ("host", "evil.example")]).await, Err(Stop::Host));
        assert_eq!(judged(&guard, "http://evil.example/", &[("host", "localhost")]).await, Err(Stop::Host));
        assert_eq!(judged(&guard, "/readyz", &[("host", "evil.example")]).await, Ok(()));
    }

    #[tokio::test]
    async fn a_page_of_another_origin_may_not_ask() {
        let guard = guard(None);
        let from = |name, value| [("host", "localhost:9090"), (name, value)];
        for (name, value, let_in) in [
            ("origin", "http://localhost:9090", true),
            ("origin", "http://localhost:3000", false),
            ("origin", "https://evil.example", false),
            ("origin", "null", false),
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "none", true),
            ("sec-fetch-site", "same-site", false),
            ("sec-fetch-site", "cross-site", false),
        ] {
            let judged = judged(&guard, "/debug/explain", &from(name, value)).await;
            assert_eq!(judged, if let_in { Ok(()) } else { Err(Stop::Origin) }, "{name}: {value}");
        }
    }

    #[tokio::test]
    async fn where_a_token_is_asked_for_nothing_else_helps() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, format!("{SECRET}\n")).unwrap();
        let with_token = guard(Some(&file));
        fn shown(value: &str) -> [(&str, &str); 2] {
            [("host", "10.0.0.1:9090"), ("authorization", value)]
        }
        for path in ["/", "/metrics", "/debug/fleet", "/debug/explain", "/nothing"] {
            let right = format!("Bearer {SECRET}");
            assert_eq!(judged(&with_token, path, &shown(&right)).await, Ok(()), "{path}");
            let (shorter, longer) = (&right[..right.len() - 1], format!("{right}s"));
            for wrong in [shorter, &longer, SECRET, &right.replace("Bearer", "Basic"), "Bearer ", ""] {
                assert_eq!(judged(&with_token, path, &shown(wrong)).await, Err(Stop::Token), "{path} {wrong}");
            }
            assert_eq!(judged(&with_token, path, &[("host", "10.0.0.1")]).await, Err(Stop::Token));
        }
        let right = format!("Bearer {SECRET}");
        let twice = [("host", "10.0.0.1"), ("authorization", &right), ("authorization", &*right)];
        assert_eq!(judged(&with_token, "/", &twice).await, Err(Stop::Token));
        for path in OPEN {
            assert_eq!(judged(&with_token, path, &[]).await, Ok(()));
        }
    }

    #[test]
    fn a_token_file_that_is_missing_empty_or_short_is_no_token_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let told = || opened(Some(&file)).unwrap_err().to_string();
        assert!(told().contains("cannot be read (make one with `openssl rand -hex 32`"), "{}", told());
        for (text, length) in [("", 0), ("\n", 0), ("x", 1), (&SECRET[1..], 31)] {
            std::fs::write(&file, text).unwrap();
            let wanted = format!("has {length} characters, and a token of less than 32 can be guessed");
            assert!(told().contains(&wanted), "{}", told());
        }
    }
}
