//! How an answer ends: a clean end, or a cut that the client is told of. What follows from it for the pod is told in
//! `gateway::reading`.
//!
//! An answer that breaks off never ends as if it were complete: a stream is told so in an event of its own dialect, and
//! a whole answer's connection is cut. A stream that has said its own end is complete whatever happens after it.

use bytes::Bytes;
use http_body::Body as _;

use super::{
    answer::BrokeOff,
    relay::{Relay, State},
};
use crate::{
    gateway::{reading::Watch, receipt::Outcome, rejection::PANIC},
    openai::End,
};

impl Relay {
    /// The pod's body is complete: what the edits still hold, and the verdict on how it ended.
    pub(super) fn end(&mut self) -> Result<Bytes, BrokeOff> {
        if self.reading.is_half() {
            // A pod that dies behind a connection without framing looks like one that is done.
            return self.cut("no_end");
        }
        let mut rest = self.reading.finish();
        self.state = State::Said;
        if let Some(why) = self.reading.ended_without_end() {
            rest.extend_from_slice(&self.reading.last_words(why));
            self.reading.broke_off(why);
        }
        Ok(rest.freeze())
    }

    /// The answer broke off: a stream is told so in its own words and then ended; a whole answer must not look
    /// complete, so its connection is cut.
    pub(super) fn cut(&mut self, why: &'static str) -> Result<Bytes, BrokeOff> {
        let Watch::Stream(watch) = &self.reading.watch else {
            self.reading.broke_off(why);
            self.state = State::Over;
            return Err(BrokeOff);
        };
        if *watch.end() != End::Running {
            // It said its end, good or bad, and that was passed on; what it did then is nobody's business.
            let rest = self.reading.release().freeze();
            self.state = State::Said;
            return Ok(rest);
        }
        self.reading.broke_off(why);
        if self.reading.has_no_room() {
            // The length that was promised leaves no room for an error; that it is not reached is one.
            self.state = State::Over;
            return Err(BrokeOff);
        }
        self.state = State::Said;
        Ok(self.reading.last_words(why))
    }

    /// This gateway failed on it.
    pub(super) fn panicked(&mut self, what: &str) -> Result<Bytes, BrokeOff> {
        let reading = &mut self.reading;
        tracing::error!(request_id = reading.receipt.request_id.to_str().unwrap_or_default(), what, "a relay panicked");
        reading.broke_off(PANIC);
        if reading.is_whole() || self.state != State::Flowing {
            self.state = State::Over;
            return Err(BrokeOff);
        }
        self.state = State::Said;
        Ok(reading.last_words(PANIC))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // What failed once is not asked again while it is being given up.
        if self.reading.receipt.outcome != Outcome::Cut(PANIC) {
            self.reading.settle(self.state != State::Flowing || self.body.is_end_stream());
        }
    }
}
