//! What a verified token says of who shows it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::Caller;
use crate::config::{AllowedModels, Claims, LONGEST_NAME};

/// Models that a token may name: a list for one caller, not a catalogue.
const MOST_MODELS: usize = 200;

/// Why a token is not good now, although its issuer signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untimely {
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// It has no end, or none that is a number.
    Endless,
}

/// Whether a token with these claims is good `now`.
pub(super) fn check_times(claims: &Value, now: SystemTime, leeway: Duration) -> Result<(), Untimely> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = leeway.as_secs_f64();
    let end = claims.get("exp").and_then(Value::as_f64).ok_or(Untimely::Endless)?;
    if end + leeway <= now {
        return Err(Untimely::Expired);
    }
    match claims.get("nbf") {
        None => Ok(()),
        Some(begin) if begin.as_f64().is_some_and(|begin| begin <= now + leeway) => Ok(()),
        Some(_) => Err(Untimely::NotYet),
    }
}

/// Who it is; `None` if no tenant is named, or none that could be one.
pub(super) fn caller(claims: &Value, meaning: &Claims) -> Option<Caller> {
    let name = |path: &str| claim(claims, path).and_then(Value::as_str).filter(|it| is_name(it)).map(Arc::from);
    let models = meaning.models.as_ref().map(|path| match claim(claims, path) {
        Some(Value::Array(names)) => AllowedModels::new(names.iter().filter_map(Value::as_str).take(MOST_MODELS)),
        Some(Value::String(words)) => AllowedModels::new(words.split_whitespace().take(MOST_MODELS)),
        // Whoever lists models in tokens does not mean all of them where the list is missing.
        _ => AllowedModels::new::<&str>([]),
    });
    let priority = meaning.priority.as_ref().and_then(|path| claim(claims, path)?.as_i64());
    Some(Caller {
        key: name(&meaning.key),
        priority: priority.and_then(|it| i32::try_from(it).ok()),
        models,
        ..Caller::of(name(&meaning.tenant)?)
    })
}

/// The claim of that name; where there is none, what the parts of `a.b` lead to.
fn claim<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    claims.get(path).or_else(|| path.split('.').try_fold(claims, |inside, part| inside.get(part)))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= LONGEST_NAME && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meaning(tenant: &str, priority: Option<&str>, models: Option<&str>) -> Claims {
        let owned = |text: Option<&str>| text.map(ToOwned::to_owned);
        Claims { tenant: tenant.to_owned(), key: "sub".to_owned(), priority: owned(priority), models: owned(models) }
    }

    #[test]
    fn a_token_is_good_between_its_two_moments_and_as_far_beyond_as_clocks_differ() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let leeway = Duration::from_secs(30);
        for (claims, now, good) in [
            (json!({"exp": 1000}), 900, Ok(())),
            (json!({"exp": 1000}), 1029, Ok(())),
            (json!({"exp": 1000}), 1030, Err(Untimely::Expired)),
            (json!({"exp": 1000.5}), 1030, Ok(())),
            (json!({"exp": 1000, "nbf": 930}), 900, Ok(())),
            (json!({"exp": 1000, "nbf": 931}), 900, Err(Untimely::NotYet)),
            (json!({"exp": 1000, "nbf": "soon"}), 900, Err(Untimely::NotYet)),
            (json!({"exp": "1000"}), 900, Err(Untimely::Endless)),
            (json!({}), 900, Err(Untimely::Endless)),
        ] {
            assert_eq!(check_times(&claims, at(now), leeway), good, "{claims} at {now}");
        }
    }

    #[test]
    fn claims_say_tenant_name_priority_and_models() {
        let claims = json!({"sub": "u1", "org": {"id": "shop"}, "https://a.b/org": "far", "tier": -1, "scope": "m1 m2", "list": ["x*"]});
        let who = caller(&claims, &meaning("org.id", Some("tier"), Some("scope"))).unwrap();
        assert_eq!((&*who.tenant, who.key.as_deref(), who.priority), ("shop", Some("u1"), Some(-1)));
        assert!(who.may_ask_for("m2") && !who.may_ask_for("m3"));
        assert_eq!(&*caller(&claims, &meaning("https://a.b/org", None, None)).unwrap().tenant, "far");
        let listed = caller(&claims, &meaning("sub", None, Some("list"))).unwrap();
        assert!(listed.may_ask_for("x1") && !listed.may_ask_for("m1"));
        let unlisted = caller(&claims, &meaning("sub", None, Some("missing"))).unwrap();
        assert!(!unlisted.may_ask_for("m1"), "a token without the list may ask for nothing");
        for tenant in ["missing", "org", "tier"] {
            assert_eq!(caller(&claims, &meaning(tenant, None, None)), None, "{tenant} is no name");
        }
        assert_eq!(caller(&json!({"sub": "a".repeat(129)}), &meaning("sub", None, None)), None);
    }
}
