//! Where a pod is: the `url` of an endpoint, in the configuration and in the files that `file:` endpoints name.
//!
//! Our own small reader instead of a general URL one, because most of what a URL may hold (user, query, fragment, `..`)
//! is a mistake here and shall be called one. It resolves no names.

use std::{collections::BTreeMap, net::Ipv6Addr, path::PathBuf};

use serde::Deserialize;

use super::{
    Origin, Target,
    check::Sheet,
    report::{Report, Source},
    shape,
    tree::{self, At, Kind},
};

/// What is wrong with a URL, and what to do.
type Wrong = (String, String);

/// Reads a list of endpoints, as in a file that a `file:` endpoint names: `- url: http://10.0.0.1:8000`.
///
/// `[]` is a pool scaled to nothing; an empty file is an error, because that is what a half-written one looks like.
pub fn parse_endpoints(name: &str, text: &str) -> Result<Vec<Target>, Report> {
    let source = Source::new(name, text);
    let root = match tree::parse(text) {
        Ok(root) => root,
        Err(finding) => {
            return Err(Report { problems: source.problems(vec![finding]) });
        }
    };
    let mut sheet = Sheet::default();
    let mut seen = BTreeMap::new();
    if matches!(root.kind, Kind::Null) {
        let remedy = "write `- url: http://10.0.0.1:8000`, or `[]` for no pods";
        sheet.error(root.place, "the list of endpoints is empty", remedy);
    }
    let reading = shape::read::<Option<Vec<ListedFile>>>(&root);
    sheet.take(reading.findings);
    let mut targets = Vec::new();
    for entry in reading.value.flatten().unwrap_or_default() {
        let place = entry.url.place;
        let Some(target) = listed_target(&entry, &mut sheet) else {
            continue;
        };
        let key = (target.origin.authority(), target.base_path.clone());
        if let Some(line) = seen.insert(key, place.line) {
            let remedy = format!("keep one: the first is on line {line}");
            sheet.error(place, "this endpoint is listed twice", remedy);
        }
        targets.push(target);
    }
    match sheet.errors() {
        0 => Ok(targets),
        _ => Err(Report { problems: source.problems(sheet.findings) }),
    }
}

/// One entry of such a file: a pod at a fixed URL, and never a further name or file to look up.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an endpoint, such as `url: http://10.0.0.1:8000`")]
struct ListedFile {
    url: At<String>,
    token_file: Option<At<PathBuf>>,
    metrics_url: Option<At<String>>,
}

fn listed_target(entry: &ListedFile, sheet: &mut Sheet) -> Option<Target> {
    let token_file = entry.token_file.as_ref().map(|path| path.value.clone());
    let metrics_url = metrics_page(sheet, entry.metrics_url.as_ref());
    let target = parse_target(sheet, &entry.url)?;
    Some(Target { token_file, metrics_url, ..target })
}

/// The target that `url` names; a wrong one goes on the sheet.
pub(super) fn parse_target(sheet: &mut Sheet, url: &At<String>) -> Option<Target> {
    let parsed = split(&url.value).and_then(|(origin, path)| Ok((origin, base_path(path)?)));
    match parsed {
        Ok((origin, base_path)) => Some(Target { origin, base_path, token_file: None, metrics_url: None }),
        Err((message, remedy)) => {
            sheet.error(url.place, message, remedy);
            None
        }
    }
}

/// A `metrics_url` as written, once it has proved to be a URL.
pub(super) fn metrics_page(sheet: &mut Sheet, url: Option<&At<String>>) -> Option<String> {
    let url = url?;
    if let Err((message, remedy)) = split(&url.value) {
        sheet.error(url.place, message, remedy);
    }
    Some(url.value.clone())
}

/// Scheme, host and port, and the path as written.
fn split(url: &str) -> Result<(Origin, &str), Wrong> {
    let no_scheme = || (format!("`{url}` has no scheme"), format!("write `http://{url}` or `https://{url}`"));
    let (scheme, rest) = url.split_once("://").ok_or_else(no_scheme)?;
    let https = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => {
            return Err((format!("the scheme `{scheme}` is not supported"), "use `http://` or `https://`".to_owned()));
        }
    };
    if let Some(mark) = rest.find(['?', '#']) {
        let cut = url.len() - rest.len() + mark;
        let kept = url.get(..cut).unwrap_or_default();
        return Err(("this URL has a query or a fragment".to_owned(), format!("leave it out: `{kept}`")));
    }
    let (authority, path) = rest.find('/').and_then(|slash| rest.split_at_checked(slash)).unwrap_or((rest, ""));
    if authority.contains('@') {
        let remedy = "put a bearer token in a file and name it in `token_file`";
        return Err(("this URL holds a user or a password".to_owned(), remedy.to_owned()));
    }
    if !path.bytes().all(|byte| {
        byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
    }) {
        let remedy = "write other characters percent-encoded, a space as `%20`";
        return Err(("this URL's path has characters that no path may have".to_owned(), remedy.to_owned()));
    }
    let (host, port) = host_and_port(authority)?;
    let port = port.unwrap_or(if https { 443 } else { 80 });
    Ok((Origin { https, host, port }, path))
}

fn host_and_port(authority: &str) -> Result<(String, Option<u16>), Wrong> {
    let bad_host = |host: &str| {
        let message =
            if host.is_empty() { "this URL has no host".to_owned() } else { format!("`{host}` is not a host") };
        (message, "write a host name, an IPv4 address, or an IPv6 address in brackets: `http://[::1]:8000`".to_owned())
    };
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| bad_host(authority))?;
        let address: Ipv6Addr = host.parse().map_err(|_| bad_host(host))?;
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(bad_host(authority)),
            port => port,
        };
        (address.to_string(), port)
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        // 253 is the longest name that DNS knows.
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
            return Err(bad_host(host));
        }
        (host.to_ascii_lowercase(), port)
    };
    let port = port.map(|port| {
        let number = port.parse().ok().filter(|number| *number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()));
        number.ok_or_else(|| (format!("`{port}` is not a port"), "write a number from 1 to 65535".to_owned()))
    });
    Ok((host, port.transpose()?))
}

/// The path without its trailing slashes, unless it repeats what Tidegate adds itself.
fn base_path(path: &str) -> Result<String, Wrong> {
    let path = path.trim_end_matches('/');
    let segments = || path.split('/').skip(1);
    if segments().any(|segment| segment == "v1") {
        let kept = path.split("/v1").next().unwrap_or_default();
        let kept = if kept.is_empty() { String::new() } else { format!(" and keep `{kept}`") };
        return Err((
            "this URL ends in an API path".to_owned(),
            format!("drop `/v1`{kept}: Tidegate adds the path of each request"),
        ));
    }
    if segments().any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(("this URL's path has an empty part, `.` or `..`".to_owned(), "write the path out".to_owned()));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, String> {
        let mut sheet = Sheet::default();
        let parsed = parse_target(&mut sheet, &At { value: url.to_owned(), place: super::super::Place::default() });
        parsed.ok_or_else(|| {
            sheet.findings.pop().map(|finding| format!("{}: {}", finding.message, finding.remedy)).unwrap()
        })
    }

    #[test]
    fn ports_come_from_the_scheme_and_base_paths_are_kept() {
        for (url, scheme, authority, base) in [
            ("http://10.0.0.1:8000", "http", "10.0.0.1:8000", ""),
            ("http://10.0.0.1", "http", "10.0.0.1:80", ""),
            ("HTTPS://App.Example.net/", "https", "app.example.net:443", ""),
            ("https://example.net/team-a/llama//", "https", "example.net:443", "/team-a/llama"),
            ("http://[::1]:8000/x%20y", "http", "[::1]:8000", "/x%20y"),
            ("http://[2001:DB8::1]", "http", "[2001:db8::1]:80", ""),
            ("http://pod_1.svc", "http", "pod_1.svc:80", ""),
            ("http://host/v10", "http", "host:80", "/v10"),
        ] {
            let target = target(url).unwrap();
            assert_eq!(
                (target.origin.scheme(), target.origin.authority().as_str(), target.base_path.as_str()),
                (scheme, authority, base)
            );
        }
    }

    #[test]
    fn what_is_a_mistake_is_called_one() {
        for (url, why) in [
            ("10.0.0.1:8000", "`10.0.0.1:8000` has no scheme: write `http://10.0.0.1:8000` or `https://10.0.0.1:8000`"),
            ("ftp://host", "the scheme `ftp` is not supported: use `http://` or `https://`"),
            ("http://host:8000/v1", "this URL ends in an API path: drop `/v1`: Tidegate adds the path of each request"),
            (
                "http://host/a/v1/models",
                "this URL ends in an API path: drop `/v1` and keep `/a`: Tidegate adds the path of each request",
            ),
            (
                "http://u:p@host",
                "this URL holds a user or a password: put a bearer token in a file and name it in `token_file`",
            ),
            ("http://host/?a=1", "this URL has a query or a fragment: leave it out: `http://host/`"),
            ("http://host#x", "this URL has a query or a fragment: leave it out: `http://host`"),
            ("http://host:0", "`0` is not a port: write a number from 1 to 65535"),
            ("http://host:+80", "`+80` is not a port: write a number from 1 to 65535"),
            ("http://host/a/../b", "this URL's path has an empty part, `.` or `..`: write the path out"),
            (
                "http://host/a b",
                "this URL's path has characters that no path may have: write other characters percent-encoded, a space as `%20`",
            ),
        ] {
            assert_eq!(target(url).unwrap_err(), why, "{url}");
        }
        for url in ["http://", "http://:80", "http://::1", "http://[::1", "http://[::1]x", "http://hö/", "http://a b"]
        {
            assert!(target(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_file_of_endpoints_is_a_list_of_urls() {
        let text = "- url: http://a:8000\n- { url: https://b, token_file: /run/token }\n";
        let targets = parse_endpoints("pods.yaml", text).unwrap();
        assert_eq!(targets.iter().map(|target| target.origin.authority()).collect::<Vec<_>>(), ["a:8000", "b:443"]);
        assert_eq!(targets[1].token_file.as_deref(), Some(std::path::Path::new("/run/token")));
        assert!(parse_endpoints("pods.yaml", "[]").unwrap().is_empty());
    }

    #[test]
    fn a_file_of_endpoints_reports_all_that_is_wrong() {
        let text = "- url: a:8000\n- dns: http://b\n- ulr: http://c\n- url: http://d\n- url: http://d\n";
        let report = parse_endpoints("pods.yaml", text).unwrap_err();
        let lines: Vec<u32> = report.problems.iter().map(|problem| problem.place.line).collect();
        assert_eq!(lines, [1, 2, 2, 3, 5], "{report}");
        assert_eq!(report.problems[1].remedy, "add `url: ...` here");
        assert_eq!(report.problems[2].remedy, "the fields are: url, token_file, metrics_url");
        assert!(parse_endpoints("pods.yaml", "").unwrap_err().to_string().contains("`[]` for no pods"));
    }
}
