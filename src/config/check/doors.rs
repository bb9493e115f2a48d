//! How a listener's door is kept: TLS, addresses, and web pages of others.

use std::{path::PathBuf, sync::Arc};

use ipnet::IpNet;

use super::Sheet;
use crate::config::{
    defaults,
    listener::{
        ClientCertificates, ClientCertificatesFile, Cors, CorsFile, KeyPair, KeyPairFile, ListenerFile, ListenerTls,
        ListenerTlsFile, Network, Networks, ProtocolFile, ProxyProtocol, network,
    },
    tree::At,
};

/// How a listener for clients speaks TLS.
pub(super) fn tls(listener: &ListenerFile, sheet: &mut Sheet) -> Option<ListenerTls> {
    let At { value: given, place } = listener.tls.as_ref()?;
    if listener.protocol.as_ref().is_some_and(|protocol| protocol.value == ProtocolFile::ExtProc) {
        let remedy = "write `ext_proc: { secure: true, cert_path: ... }`, or take `tls` out";
        sheet.error(*place, "what Envoy is shown is said under `ext_proc`", remedy);
    }
    let ListenerTlsFile { certificates, client_certificates, min_version } = given;
    if certificates.value.0.is_empty() {
        let remedy = "add one: `{ folder: /etc/tidegate/tls }`, or `{ cert_file: ..., key_file: ... }`";
        sheet.error(certificates.place, "there is no certificate to show", remedy);
    }
    Some(ListenerTls {
        certificates: certificates.value.0.iter().filter_map(|at| certificate(at, sheet)).collect(),
        client_certificates: client_certificates.as_ref().map(self::client_certificates),
        min_version: min_version.unwrap_or_default(),
    })
}

/// Both files of a certificate.
pub(super) fn certificate(at: &At<KeyPairFile>, sheet: &mut Sheet) -> Option<KeyPair> {
    let path = |at: &At<PathBuf>| at.value.clone();
    match &at.value {
        KeyPairFile { cert_file: Some(cert), key_file: Some(key), folder: None } => {
            Some(KeyPair { cert_file: path(cert), key_file: path(key) })
        }
        KeyPairFile { cert_file: None, key_file: None, folder: Some(folder) } => {
            Some(KeyPair::in_folder(&folder.value))
        }
        _ => {
            let remedy = "write `cert_file` and `key_file`, or `folder` alone";
            sheet.error(at.place, "a certificate is two files, or a folder that holds both", remedy);
            None
        }
    }
}

/// Whose certificates clients show.
pub(super) fn client_certificates(given: &ClientCertificatesFile) -> ClientCertificates {
    ClientCertificates { ca_file: given.ca_file.value.clone(), required: given.required.unwrap_or(true) }
}

/// Who may come in by address.
pub(super) fn addresses(listener: &ListenerFile, sheet: &mut Sheet) -> Arc<Network> {
    let proxy_protocol = listener.proxy_protocol.as_ref().map_or(ProxyProtocol::Off, |at| at.value);
    let trusted_proxies = networks(listener.trusted_proxies.as_ref(), sheet);
    if let Some(at) = listener.proxy_protocol.as_ref().filter(|_| proxy_protocol != ProxyProtocol::Off)
        && listener.trusted_proxies.as_ref().is_none_or(|list| list.value.is_empty())
    {
        let remedy =
            "name the balancers: `trusted_proxies: [10.0.0.0/8]`; whoever may write that header may be anybody";
        sheet.error(at.place, "nobody is trusted to say whose connection it is", remedy);
    }
    if let Some(at) = listener.client_address_header.as_ref().filter(|_| listener.trusted_proxies.is_none()) {
        let message = "nobody is trusted to say where a client comes from, so no header is read";
        sheet.warning(at.place, message, "name the proxies in `trusted_proxies`, or take it out");
    }
    let allow = networks(listener.allow.as_ref(), sheet);
    if let Some(at) = listener.allow.as_ref().filter(|at| at.value.is_empty()) {
        let message = "an empty `allow` allows everybody";
        sheet.error(at.place, message, "take it out; or write `deny: [0.0.0.0/0, \"::/0\"]` to refuse everybody");
    }
    Arc::new(Network {
        proxy_protocol,
        trusted_proxies,
        client_address_header: listener.client_address_header.as_ref().map_or_else(Default::default, |at| at.value),
        allow,
        deny: networks(listener.deny.as_ref(), sheet),
    })
}

fn networks(list: Option<&At<Vec<At<String>>>>, sheet: &mut Sheet) -> Networks {
    let mut found: Vec<IpNet> = Vec::new();
    for at in list.into_iter().flat_map(|list| &list.value) {
        match network(&at.value) {
            Ok(network) => found.push(network),
            Err((message, remedy)) => sheet.error(at.place, message, remedy),
        }
    }
    Networks::new(&found)
}

/// Which web pages may call.
pub(super) fn cors(given: Option<&CorsFile>, sheet: &mut Sheet) -> Option<Arc<Cors>> {
    let given = given?;
    let all = given.origins.value.iter().any(|origin| origin.value == "*");
    if given.origins.value.is_empty() {
        let remedy = "name them: `[\"https://chat.example.com\"]`; or take `cors` out: no page may call then";
        sheet.error(given.origins.place, "no page's origin is named", remedy);
    }
    for origin in given.origins.value.iter().filter(|origin| !is_origin(&origin.value)) {
        let message = format!("`{}` is not an origin as browsers send it", origin.value);
        sheet.error(
            origin.place,
            message,
            "write scheme, host and port alone, in small letters: `https://chat.example.com`",
        );
    }
    let credentials = given.credentials.as_ref().is_some_and(|at| at.value);
    if let Some(at) = given.credentials.as_ref().filter(|_| credentials && all) {
        let message = "every page in the world could act as whoever visits it";
        sheet.error(at.place, message, "name the origins, or leave `credentials` out: API keys need none");
    }
    for header in given.headers.iter().flatten() {
        if header.value.is_empty() || !header.value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            sheet.error(header.place, format!("`{}` is not a header", header.value), "such as `authorization`");
        }
    }
    let origins = || given.origins.value.iter().map(|origin| origin.value.clone()).collect();
    let lower = |list: &Vec<At<String>>| list.iter().map(|at| at.value.to_ascii_lowercase()).collect();
    Some(Arc::new(Cors {
        origins: (!all).then(origins),
        headers: given.headers.as_ref().map(lower),
        max_age: given.max_age.as_ref().map_or(defaults::CORS_MAX_AGE, |at| at.value.0),
        credentials,
    }))
}

/// `*`, or a scheme, a host and perhaps a port.
fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]+".contains(&byte);
    let default_port = match scheme {
        "http" => rest.ends_with(":80"),
        "https" => rest.ends_with(":443"),
        _ => false,
    };
    !scheme.is_empty() && !rest.is_empty() && scheme.bytes().chain(rest.bytes()).all(plain) && !default_port
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, load};

    fn loaded(listener: &str) -> Result<Config, String> {
        let text = format!(
            "listeners: [{{ name: a, address: 127.0.0.1:1, {listener} }}]\n\
             pools: [{{ name: p, endpoints: [{{ url: \"http://10.0.0.1:1\" }}] }}]\n"
        );
        load("t", &text).map(|it| it.0).map_err(|report| report.to_string())
    }

    #[test]
    fn a_door_is_what_the_file_says() {
        let config = loaded(
            "tls: { certificates: [{ folder: /t }, { cert_file: /c, key_file: /k }], \
             client_certificates: { ca_file: /ca }, min_version: \"1.3\" }, proxy_protocol: from-trusted, \
             trusted_proxies: [10.0.0.0/8], deny: [10.6.6.6], cors: { origins: [\"https://a.b:8443\"], headers: [X-A] }",
        )
        .unwrap();
        let listener = &config.listeners[0];
        let tls = listener.tls.as_ref().unwrap();
        assert_eq!(tls.certificates[0].key_file.display().to_string(), "/t/tls.key");
        assert_eq!(tls.certificates[1].cert_file.display().to_string(), "/c");
        assert!(tls.client_certificates.as_ref().unwrap().required, "unless it is said otherwise");
        assert!(!listener.network.admits("10.6.6.6".parse().unwrap()));
        assert_eq!(listener.cors.as_ref().unwrap().headers.as_ref().unwrap(), &["x-a"]);
    }

    #[test]
    fn what_would_open_a_door_by_mistake_is_refused() {
        for (listener, told) in [
            ("tls: { certificates: [] }", "there is no certificate to show"),
            ("tls: { certificates: [{ cert_file: /c }] }", "two files"),
            ("tls: { certificates: [{ folder: /t, key_file: /k }] }", "two files"),
            ("protocol: ext-proc, tls: { certificates: [{ folder: /t }] }", "under `ext_proc`"),
            ("proxy_protocol: required", "nobody is trusted"),
            ("proxy_protocol: from-trusted, trusted_proxies: []", "nobody is trusted"),
            ("allow: []", "allows everybody"),
            ("deny: [10.0.0.1/8]", "an address and a network at once"),
            ("cors: { origins: [] }", "no page's origin"),
            ("cors: { origins: [\"*\"], credentials: true }", "every page in the world"),
            ("cors: { origins: [\"https://a/\"] }", "not an origin"),
            ("cors: { origins: [\"https://A\"] }", "not an origin"),
            ("cors: { origins: [\"https://a:443\"] }", "not an origin"),
            ("cors: { origins: [\"a\"] }", "not an origin"),
            (
                "tls: { certificate: tls.crt, key: tls.key }",
                "write a list, such as `[ { cert_file: tls.crt, key_file: tls.key } ]`",
            ),
        ] {
            let report = loaded(listener).unwrap_err();
            assert!(report.contains(told), "{listener}: {report}");
        }
    }
}
