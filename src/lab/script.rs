//! Everything that will be asked in one run, drawn from a seed before it starts. Policies never see it.

/// A stretch of text. Two pieces with the same content are the same text as far as the shorter one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which text.
    pub content: u64,
    /// How long, in the engine's tokens.
    pub tokens: u32,
}

/// Who asks, as far as those care who say what may come in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Client {
    /// Whose share of a full fleet it takes.
    pub tenant: u32,
    /// How much it matters: higher comes first, below 0 it may be shed.
    pub priority: i32,
    /// Within which time it asks for its first token, in milliseconds; infinite if it does not say.
    pub wanted_ms: f64,
    /// How long it waits for anything to come before it goes; infinite if it stays.
    pub patience_ms: f64,
    /// How often it comes again where it was refused or went, as SDKs do.
    pub retries: u32,
}

impl Default for Client {
    /// One of no name who stays and never comes again.
    fn default() -> Self {
        Self { tenant: 0, priority: 0, wanted_ms: f64::INFINITY, patience_ms: f64::INFINITY, retries: 0 }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// When it comes, in milliseconds; of a request that follows another, not before that one is answered.
    pub at_ms: f64,
    /// What it says.
    pub prompt: Box<[Piece]>,
    /// What it will be answered; its length is known to the engine alone.
    pub answer: Piece,
    /// The adapter that its client asks for; else the model that everybody asks for.
    pub adapter: Option<u32>,
    /// The session that its client names, if it names one.
    pub session: Option<u64>,
    /// What its client asks when it has read the answer.
    pub next: Option<Next>,
    /// Who asks.
    pub client: Client,
}

/// A request that waits for the answer to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Next {
    /// Its place in the script.
    pub ask: u32,
    /// How long the client takes over the answer.
    pub pause_ms: f64,
}

impl Ask {
    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt.iter().map(|piece| piece.tokens).sum()
    }
}

/// All requests of a run. Those that follow another have `at_ms` at infinity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    /// By their numbers.
    pub asks: Vec<Ask>,
    /// After this nobody asks any more: what would follow an answer then is not part of the run.
    pub until_ms: f64,
}

impl Script {
    /// Whether nobody comes at all.
    pub fn is_silent(&self) -> bool {
        self.asks.iter().all(|ask| !ask.at_ms.is_finite())
    }

    /// The places of the requests that follow no other, in the order in which they come.
    pub fn starters(&self) -> Vec<u32> {
        let timed = self.asks.iter().enumerate().filter(|(_, ask)| ask.at_ms.is_finite());
        let mut starters: Vec<(f64, u32)> =
            timed.map(|(at, ask)| (ask.at_ms, u32::try_from(at).unwrap_or(u32::MAX))).collect();
        starters.sort_by(|one, other| one.0.total_cmp(&other.0));
        starters.into_iter().map(|(_, at)| at).collect()
    }
}
