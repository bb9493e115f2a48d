//! What an endpoint picker cannot name. Envoy is told addresses: it looks no name up, and puts nothing before a path.
//!
//! Only what the text alone tells is said, and as a warning: a pool may serve clients of another listener as well.

use std::net::IpAddr;

use super::Sheet;
use crate::config::{Listener, Model, file::File, target::parse_target};

/// Endpoints that a listener for Envoy could not name, and may have to.
pub(super) fn unnameable(file: &File, listeners: &[Listener], models: &[Model], sheet: &mut Sheet) {
    // Others have said what is wrong with these texts.
    let quiet = &mut Sheet::default();
    for pool in &file.pools.value {
        let asked = |listener: &&Listener| listener.ext_proc.is_some() && serves(listener, &pool.name.value, models);
        let Some(listener) = listeners.iter().find(asked) else { continue };
        for entry in &pool.endpoints.value {
            let (url, looked_up) = match (&entry.value.url, &entry.value.dns) {
                (Some(url), _) => (url, false),
                (None, Some(dns)) => (dns, true),
                (None, None) => continue,
            };
            let Some(target) = parse_target(quiet, url) else { continue };
            let name = &listener.name;
            if !looked_up && target.origin.host.parse::<IpAddr>().is_err() {
                let message = format!(
                    "an endpoint picker names IP addresses, and listener `{name}` would say `{}`",
                    target.origin.host
                );
                sheet.warning(
                    url.place,
                    message,
                    "write its IP address, or `dns:` instead of `url:` so that it is looked up",
                );
            } else if !target.base_path.is_empty() {
                let message = format!("listener `{name}` tells Envoy an address alone, without `{}`", target.base_path);
                sheet.warning(url.place, message, "leave the path out, and let Envoy's route put it before");
            }
        }
    }
}

/// Whether requests at a listener may lead to a pool.
fn serves(listener: &Listener, pool: &str, models: &[Model]) -> bool {
    let usual = |name: &str| models.iter().find(|model| *model.name == *name).is_some_and(|model| *model.pool == *pool);
    match (&listener.pool, &listener.models) {
        (Some(only), _) => **only == *pool,
        (None, Some(served)) => {
            served.iter().any(|(name, other)| other.as_deref().map_or_else(|| usual(name), |other| other == pool))
        }
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load;

    fn warned(listener: &str, endpoint: &str) -> String {
        let text = format!(
            "listeners: [{{ name: main, address: 127.0.0.1:1 }}, {{ name: picker, address: 127.0.0.1:2, {listener} }}]\n\
             pools: [{{ name: a, endpoints: [{{ {endpoint} }}] }}, {{ name: b, endpoints: [{{ url: \"http://10.0.0.2:1\" }}] }}]\n\
             models: [{{ modelName: m, poolRef: a }}, {{ modelName: n, poolRef: b }}]\n"
        );
        let (_, warnings) = load("t", &text).unwrap_or_else(|report| panic!("{report}"));
        warnings.iter().map(|it| format!("{}:{}", it.place.line, it.message)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_picker_whose_pods_have_names_is_warned_of_where_it_may_have_to_say_one() {
        let (envoy, named) = ("protocol: ext-proc", "url: \"http://localhost:21101\"");
        let told = "2:an endpoint picker names IP addresses, and listener `picker` would say `localhost`";
        assert_eq!(warned(envoy, named), told);
        assert_eq!(warned(&format!("{envoy}, pool: a"), named), told);
        assert_eq!(warned(&format!("{envoy}, models: [{{ modelName: m }}]"), named), told);
        assert_eq!(warned(&format!("{envoy}, models: [{{ modelName: n, poolRef: a }}]"), named), told);
        for elsewhere in
            [format!("{envoy}, pool: b"), format!("{envoy}, models: [{{ modelName: n }}]"), "pool: a".to_owned()]
        {
            assert_eq!(warned(&elsewhere, named), "", "{elsewhere}");
        }
        for fine in ["url: \"https://10.0.0.1:8443\"", "url: \"http://[fd00::1]:1\"", "dns: \"http://pods:1\""] {
            assert_eq!(warned(envoy, fine), "", "{fine}");
        }
        let base = warned(envoy, "dns: \"http://pods:1/base\"");
        assert_eq!(base, "2:listener `picker` tells Envoy an address alone, without `/base`");
    }
}
