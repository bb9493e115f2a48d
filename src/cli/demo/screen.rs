//! Where the show is seen: redrawn in place on a terminal, a line from time to time elsewhere.
//!
//! Plain escape sequences: up, clear to the end of the line, cursor off and on. What was changed about the terminal is
//! undone when this is dropped, whichever way the show ends. No alternate screen: the last picture stays in the
//! scrollback.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Stdout, Write as _},
    time::Duration,
};

use super::{
    line::Line,
    panel::{self, seconds},
    view::Frame,
};
use crate::cli::colour;

/// Four pictures a second: the figures are read, not watched.
const REDRAW: Duration = Duration::from_millis(250);

/// Lines for a log file, now and then.
const TELL: Duration = Duration::from_secs(5);

/// A terminal that does not tell its size.
const UNTOLD: (usize, usize) = (80, 24);

/// Text that is longer than the terminal is wide is cut, not wrapped, so that a picture has as many rows as lines.
const HIDE_CURSOR_NO_WRAP: &str = "\x1b[?25l\x1b[?7l";
const SHOW_CURSOR_WRAP: &str = "\x1b[?7h\x1b[?25h";

/// Standard output.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    coloured: bool,
    live: bool,
    /// Lines of the last picture and the size it was made for.
    drawn: Option<(usize, (usize, usize))>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { coloured: colour(&out), live: out.is_terminal() && !dumb, drawn: None, out }
    }

    /// How often it wants a frame.
    pub(super) fn every(&self) -> Duration {
        if self.live { REDRAW } else { TELL }
    }

    /// Shows a moment.
    pub(super) fn show(&mut self, frame: &Frame) -> io::Result<()> {
        if self.live { self.draw(frame) } else { self.tell(frame) }
    }

    /// Writes lines below whatever is there, as they are: what is to be copied must not be broken.
    pub(super) fn print(&mut self, lines: &[Line]) -> io::Result<()> {
        self.release()?;
        let mut text = String::new();
        for line in lines {
            text += &line.render(usize::MAX, self.coloured);
            text.push('\n');
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Writes sentences below whatever is there, wrapped to the terminal.
    pub(super) fn say(&mut self, lines: &[Line]) -> io::Result<()> {
        let width = terminal_size::terminal_size_of(&self.out).map_or(usize::MAX, |(width, _)| width.0.into());
        let rows: Vec<Line> = lines.iter().flat_map(|line| line.wrapped(width)).collect();
        self.print(&rows)
    }

    fn draw(&mut self, frame: &Frame) -> io::Result<()> {
        let size = terminal_size::terminal_size_of(&self.out)
            .map_or(UNTOLD, |(width, height)| (usize::from(width.0), usize::from(height.0)));
        let mut text = match self.drawn {
            None => HIDE_CURSOR_NO_WRAP.to_owned(),
            Some((lines, before)) if before == size => format!("\r\x1b[{lines}A"),
            // After a resize nobody knows where the old picture is.
            Some(_) => "\x1b[2J\x1b[H".to_owned(),
        };
        let mut lines = panel::lines(frame, size.0);
        // The cursor needs a row of its own; what does not fit would scroll away and could not be drawn over.
        lines.truncate(size.1.saturating_sub(1).max(1));
        for line in &lines {
            // In a full row the cursor stands on the last character, which must not be cleared.
            let clear = if line.width() < size.0 { "\x1b[K" } else { "" };
            writeln!(text, "{}{clear}", line.render(size.0, self.coloured)).map_err(io::Error::other)?;
        }
        text += "\x1b[J";
        self.drawn = Some((lines.len(), size));
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        let mut text = format!("{:>3.0} s", frame.elapsed.as_secs_f64());
        for side in &frame.sides {
            let figures = &side.figures;
            let p90 = figures.first_token.get(1).copied().flatten();
            let waiting: u32 = side.pods.iter().filter_map(|pod| pod.waiting).sum();
            write!(
                text,
                "  | {}: {} sent, {} done, {} errors, {} given up, {waiting:>2} waiting, p90 TTFT {}",
                side.policy,
                figures.sent,
                figures.done,
                figures.failed,
                figures.given_up,
                seconds(p90).trim()
            )
            .map_err(io::Error::other)?;
        }
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Gives the terminal back as it was.
    fn release(&mut self) -> io::Result<()> {
        if self.drawn.take().is_some() {
            self.out.write_all(SHOW_CURSOR_WRAP.as_bytes())?;
            self.out.flush()?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        self.release().ok();
    }
}
