//! What is to be settled or undone, on its way to Redis: many in one round trip, and kept until Redis has answered. It may
//! be sent twice; the script sees to it that it counts once.

use std::{sync::Arc, time::Duration};

use redis::aio::MultiplexedConnection;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{Line, PAUSE, Settlement, key_of, scripts};
use crate::tasks::Tasks;

/// Settlements in one round trip.
const BATCH: usize = 64;

/// How long the last settlements have when the gateway stops.
const LAST: Duration = Duration::from_secs(1);

/// Settles what is in the queue, many at once.
pub(super) struct Settler {
    queue: mpsc::Receiver<Settlement>,
    /// Those that are on their way.
    batch: Vec<Settlement>,
    line: Arc<Line>,
    prefix: String,
}

impl Settler {
    pub(super) fn new(queue: mpsc::Receiver<Settlement>, line: Arc<Line>, prefix: String) -> Self {
        Self { queue, batch: Vec::with_capacity(BATCH), line, prefix }
    }

    /// Until the gateway stops; then the rest.
    pub(super) async fn work(mut self, tasks: Tasks) {
        tokio::select! {
            () = self.settle_all() => {}
            () = tasks.stopped() => {
                self.queue.close();
                if timeout(LAST, self.settle_all()).await.is_err() {
                    self.line.metrics.lost.inc_by((self.batch.len() + self.queue.len()) as u64);
                }
            }
        }
    }

    /// May be given up anywhere and begun again: a batch stays until Redis has answered.
    async fn settle_all(&mut self) {
        loop {
            while !self.batch.is_empty() {
                match self.line.connection.load_full() {
                    Some(connection) => self.settle(&connection).await,
                    None => self.line.made.notified().await,
                }
            }
            if self.queue.recv_many(&mut self.batch, BATCH).await == 0 {
                return;
            }
        }
    }

    async fn settle(&mut self, connection: &MultiplexedConnection) {
        let mut pipe = redis::pipe();
        for Settlement { ticket, used } in &self.batch {
            let command = pipe.cmd("EVAL").arg(scripts::SETTLE).arg(ticket.meters.len() + 1);
            command.arg(key_of(&self.prefix, &ticket.id));
            for meter in &ticket.meters {
                command.arg(meter.key(&self.prefix));
            }
            command.arg(&ticket.id).arg(if used.is_some() { "settle" } else { "undo" });
            for (n, meter) in ticket.meters.iter().enumerate() {
                let (kind, index) = meter.kind.word();
                let used = used.as_ref().and_then(|used| used.get(n)).copied().unwrap_or_default();
                command.arg(kind).arg(meter.field).arg(meter.limit).arg(meter.amount).arg(index).arg(used);
            }
            pipe.ignore();
        }
        let sent = pipe.query_async::<()>(&mut connection.clone()).await;
        let Err(error) = sent else { return self.batch.clear() };
        self.line.fails(&error.to_string());
        if error.is_io_error() {
            // A connection that is made and breaks at once is no reason to hurry.
            sleep(PAUSE).await;
        } else {
            // What it does not want it will not want another time either. What was reserved stays counted: rather too much
            // than too little.
            self.line.metrics.lost.inc_by(self.batch.len() as u64);
            self.batch.clear();
        }
    }
}
