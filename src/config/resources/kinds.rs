//! The kinds of objects that are read: what each is called, who serves it, in which versions.

/// The kinds that are read, by the group that serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `InferencePool` of `inference.networking.k8s.io`.
    Pool,
    /// `InferencePool` of the alpha group.
    AlphaPool,
    /// `InferenceModel`.
    Model,
    /// `InferenceModelRewrite` of `llm-d.ai`.
    Rewrite,
    /// `InferenceModelRewrite` of the alpha group.
    AlphaRewrite,
    /// `InferenceObjective` of `llm-d.ai`.
    Objective,
    /// `InferenceObjective` of the alpha group.
    AlphaObjective,
    /// `Pod`.
    Pod,
    /// `EndpointSlice`.
    Slice,
}

/// The group of the extension's alpha versions.
const ALPHA: &str = "inference.networking.x-k8s.io";

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pool,
        Self::AlphaPool,
        Self::Model,
        Self::Rewrite,
        Self::AlphaRewrite,
        Self::Objective,
        Self::AlphaObjective,
        Self::Pod,
        Self::Slice,
    ];

    /// Its word in `kind:`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pool | Self::AlphaPool => "InferencePool",
            Self::Model => "InferenceModel",
            Self::Rewrite | Self::AlphaRewrite => "InferenceModelRewrite",
            Self::Objective | Self::AlphaObjective => "InferenceObjective",
            Self::Pod => "Pod",
            Self::Slice => "EndpointSlice",
        }
    }

    /// The API group that serves it.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Pool => "inference.networking.k8s.io",
            Self::AlphaPool | Self::Model | Self::AlphaRewrite | Self::AlphaObjective => ALPHA,
            Self::Rewrite | Self::Objective => "llm-d.ai",
            Self::Pod => "",
            Self::Slice => "discovery.k8s.io",
        }
    }

    /// Its word in URLs.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Pool | Self::AlphaPool => "inferencepools",
            Self::Model => "inferencemodels",
            Self::Rewrite | Self::AlphaRewrite => "inferencemodelrewrites",
            Self::Objective | Self::AlphaObjective => "inferenceobjectives",
            Self::Pod => "pods",
            Self::Slice => "endpointslices",
        }
    }

    /// The versions that are understood, the best first.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Pool | Self::Pod | Self::Slice => &["v1"],
            Self::AlphaPool | Self::Model => &["v1alpha2", "v1alpha1"],
            Self::Rewrite | Self::AlphaRewrite | Self::Objective | Self::AlphaObjective => &["v1alpha2"],
        }
    }

    /// Whether a custom resource definition has to be installed for it.
    pub const fn is_custom(self) -> bool {
        !matches!(self, Self::Pod | Self::Slice)
    }
}
