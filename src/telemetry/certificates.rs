//! What is told of certificates: when they end, and that a new one could not be used.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{Name, labels::CertificateLabels};

/// The families of certificates. Bounded by the files that the configuration names.
#[derive(Clone, Debug, Default)]
pub struct CertificateMetrics {
    not_after: Family<CertificateLabels, Gauge>,
    failures: Family<CertificateLabels, Counter>,
}

impl CertificateMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let ends = "When the certificate ends that is in use, in seconds since 1970";
        registry.register_with_unit("certificate_not_after", ends, Unit::Seconds, self.not_after.clone());
        let failures = "New certificates and authorities that could not be used, so that the ones before stayed";
        registry.register("certificate_reload_failures", failures, self.failures.clone());
    }

    /// The certificate of `file` ends then.
    pub fn ends(&self, listener: &Name, file: &str, not_after: i64) {
        self.not_after.get_or_create(&labels(listener, file)).set(not_after);
        // A series that begins with its first failure hides it from `increase()`.
        drop(self.failures.get_or_create(&labels(listener, file)));
    }

    /// What `file` holds now cannot be used.
    pub fn failed(&self, listener: &Name, file: &str) {
        self.failures.get_or_create(&labels(listener, file)).inc();
    }
}

fn labels(listener: &Name, file: &str) -> CertificateLabels {
    CertificateLabels { listener: listener.clone(), name: Name::from(file) }
}
