//! The DNS proxy's line to the agent of the time.
//!
//! Contract: [`AgentLine::ask`] returns in bounded time ([`Patience`]). Once an agent has let that time pass, or does not take what is
//! written to it, nobody waits for it any more until it has said something: it costs one answer its patience, not
//! every answer. The connection is given up then, for nobody knows what the agent has read, and another is tried now
//! and then. An agent that is new or speaks again is told everything that is fresh, and what was opened without it
//! ([`OpenedAlone`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::known_names::KnownNames;
use super::names::{Question, SOCKET, Told};
use super::opened_alone::{Opened, OpenedAlone};
use crate::dnsproxy::Reach;
use crate::fqdn::{Given, Learned, TtlBounds};

/// With the agent.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long an answer is held back.
    answer: Duration,
    /// How long what is written may be left unread.
    write: Duration,
    /// Between attempts to speak with an agent that says nothing.
    pause: Duration,
}

impl Patience {
    const USUAL: Patience = Patience {
        answer: Duration::from_secs(2),
        write: Duration::from_secs(1),
        pause: Duration::from_secs(5),
    };
}

/// Answers that wait to be sent.
const QUEUE: usize = 4096;
/// Answers that are written at once.
const BATCH: usize = 64;
/// How often what is owed is looked at, and an absent agent looked for.
const TICK: Duration = Duration::from_millis(100);
/// Answers that are owed and told in one tick.
const MOST_DUE: usize = 1024;

/// Questions that the agent has not answered, by number.
type Waiting = Arc<Mutex<HashMap<u64, Asked>>>;

struct Ask {
    given: Given,
    /// Absent: nobody waits.
    answer: Option<oneshot::Sender<Reach>>,
    opened: Option<Opened>,
}

impl Ask {
    /// Nobody waits.
    fn tell(given: Given) -> Ask {
        Ask { given, answer: None, opened: None }
    }
}

struct Asked {
    name: Arc<str>,
    answer: Option<oneshot::Sender<Reach>>,
    opened: Option<Opened>,
}

/// See the module.
pub struct AgentLine {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    patience: Patience,
}

#[derive(Debug)]
struct Shared {
    known: KnownNames,
    opened: OpenedAlone,
    /// Grows whenever what was told may not hold any more: patterns, the agent, or its limits changed.
    generation: AtomicU64,
    /// The agent that is there says nothing.
    is_silent: AtomicBool,
}

impl Shared {
    fn doubt(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Acquire)
    }

    fn set_silent(&self) {
        if !self.is_silent.swap(true, Ordering::AcqRel) {
            tracing::warn!("the agent does not answer: names are learned without it until it does");
        }
    }
}

impl AgentLine {
    /// Talks to whichever agent serves `run_dir` at the time.
    pub fn start(run_dir: &Path, ttl: TtlBounds) -> AgentLine {
        AgentLine::start_with(run_dir, ttl, Patience::USUAL)
    }

    fn start_with(run_dir: &Path, ttl: TtlBounds, patience: Patience) -> AgentLine {
        let (asks, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            known: KnownNames::new(ttl),
            opened: OpenedAlone::new(ttl),
            generation: AtomicU64::new(1),
            is_silent: AtomicBool::new(false),
        });
        let link = Link {
            socket: run_dir.join(SOCKET),
            shared: Arc::clone(&shared),
            open: None,
            retry_at: Instant::now(),
            last: 0,
            patience,
        };
        tokio::spawn(link.send_all(queue));
        AgentLine { shared, asks, patience }
    }

    /// What the agent was told.
    pub fn known(&self) -> &KnownNames {
        &self.shared.known
    }

    /// What was told holds under the same generation only.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// What was told may not hold any more.
    pub fn doubt(&self) {
        self.shared.doubt();
    }

    /// Tells the agent, and waits for nothing. `false`: there is too much to tell.
    pub fn tell(&self, given: Given) -> bool {
        self.asks.try_send(Ask::tell(given)).is_ok()
    }

    /// These addresses are about to be opened without the agent, which is told later. `false`: they may not be.
    pub fn note_opened(&self, learned: &Learned) -> bool {
        self.shared.opened.note(learned, std::time::Instant::now())
    }

    /// What the agent says. `None`: there is none, or it says nothing.
    pub async fn ask(&self, given: Given) -> Option<Reach> {
        if self.shared.is_silent() {
            return None;
        }
        let (answer, wait) = oneshot::channel();
        let asked = async {
            self.asks.send(Ask { given, answer: Some(answer), opened: None }).await.ok()?;
            // An agent that is gone drops the other end.
            wait.await.ok()
        };
        timeout(self.patience.answer, asked).await.unwrap_or_else(|_| {
            self.shared.set_silent();
            None
        })
    }
}

/// A connection.
struct Open {
    write: OwnedWriteHalf,
    waiting: Waiting,
    /// Until when an agent that said nothing has to say something.
    speaks_by: Option<Instant>,
}

/// The connection to the agent of the time.
struct Link {
    socket: PathBuf,
    shared: Arc<Shared>,
    open: Option<Open>,
    /// When a silent agent is tried again.
    retry_at: Instant,
    /// Number of the last question.
    last: u64,
    patience: Patience,
}

impl Link {
    async fn send_all(mut self, mut queue: mpsc::Receiver<Ask>) {
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = queue.recv_many(&mut batch, BATCH) => if received == 0 { return },
                _ = tick.tick() => {}
            }
            // An agent that is back is told before it is asked.
            if !self.is_open() && !self.connect().await {
                batch.clear();
                continue;
            }
            let due = {
                let now = std::time::Instant::now();
                self.shared.known.due(now, now, MOST_DUE)
            };
            batch.extend(due.into_iter().map(Ask::tell));
            if !batch.is_empty() {
                self.send(&mut batch).await;
            }
        }
    }

    /// Looks whether the agent that was there is still there, and speaks.
    fn is_open(&mut self) -> bool {
        let Some(open) = &self.open else { return false };
        let has_ended = Arc::strong_count(&open.waiting) == 1;
        let is_late = self.shared.is_silent() && open.speaks_by.is_none_or(|by| by <= Instant::now());
        if has_ended || is_late {
            self.close();
        }
        self.open.is_some()
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            open.waiting.lock().clear();
            self.retry_at = Instant::now() + self.patience.pause;
            // What it promised nobody keeps.
            self.shared.doubt();
        }
    }

    async fn send(&mut self, batch: &mut Vec<Ask>) {
        let Some(Open { write, waiting, .. }) = &mut self.open else { return batch.clear() };
        let mut text = Vec::new();
        for Ask { given, answer, opened } in batch.drain(..) {
            self.last += 1;
            let mut question = Question::new(self.last, &given);
            question.opened = opened.as_ref().map(|opened| opened.addresses.clone()).unwrap_or_default();
            waiting.lock().insert(self.last, Asked { name: given.learned.name, answer, opened });
            if serde_json::to_writer(&mut text, &question).is_ok() {
                text.push(b'\n');
            }
        }
        match timeout(self.patience.write, write.write_all(&text)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.close(),
            Err(_) => {
                self.shared.set_silent();
                self.close();
            }
        }
    }

    async fn connect(&mut self) -> bool {
        let is_silent = self.shared.is_silent();
        if is_silent && Instant::now() < self.retry_at {
            return false;
        }
        let Ok(stream) = UnixStream::connect(&self.socket).await else {
            // The next one is another agent.
            self.shared.opened.nobody_is_there(std::time::Instant::now());
            self.shared.is_silent.store(false, Ordering::Release);
            return false;
        };
        let (read, write) = stream.into_split();
        let waiting = Waiting::default();
        tokio::spawn(hear(read, Arc::clone(&waiting), Arc::clone(&self.shared)));
        let speaks_by = is_silent.then(|| Instant::now() + self.patience.answer);
        self.open = Some(Open { write, waiting, speaks_by });
        let now = std::time::Instant::now();
        let mut news: Vec<Ask> = self.shared.known.fresh(now).into_iter().map(Ask::tell).collect();
        self.shared.doubt();
        let opened = self.shared.opened.all(now).into_iter();
        news.extend(opened.map(|opened| Ask { opened: Some(opened.clone()), ..Ask::tell(opened.given) }));
        if is_silent {
            // It is to say something, whether or not there is anything to tell.
            news.insert(0, Ask::tell(nothing()));
        }
        let mut news = news.into_iter();
        loop {
            let mut batch: Vec<Ask> = news.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return self.open.is_some();
            }
            self.send(&mut batch).await;
        }
    }
}

/// An answer that teaches nothing.
fn nothing() -> Given {
    Given { learned: Learned { name: "".into(), addresses: Vec::new() }, clients: Vec::new() }
}

/// Hands out the agent's words until it is gone.
async fn hear(read: OwnedReadHalf, waiting: Waiting, shared: Arc<Shared>) {
    let mut lines = BufReader::new(read).lines();
    let mut evictions = None;
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(told) = serde_json::from_str::<Told>(&line) else { break };
        // Before the answer is taken for known.
        if evictions.replace(told.evictions).is_some_and(|before| before != told.evictions) {
            shared.doubt();
        }
        // Words over a connection that was given up count for nothing.
        let Some(Asked { name, answer, opened }) = waiting.lock().remove(&told.id) else { continue };
        opened.iter().for_each(|opened| shared.opened.heard(opened));
        if shared.is_silent.swap(false, Ordering::AcqRel) {
            tracing::info!("the agent answers again");
        }
        let reach = if told.ready { Reach::Ready } else { Reach::Closed };
        if reach == Reach::Closed {
            // It may have been taken to be open already, for as long as it was to be told.
            shared.known.forget(&name);
        }
        if let Some(answer) = answer {
            // Who asked may have lost patience.
            answer.send(reach).ok();
        }
    }
    waiting.lock().clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn given(name: String) -> Given {
        let addresses = vec![([192, 0, 2, 1].into(), Duration::from_secs(60))];
        Given { learned: Learned { name: name.into(), addresses }, clients: vec![[10, 0, 0, 1].into()] }
    }

    /// Answers everything that is asked over one connection.
    async fn answer_all(stream: UnixStream) {
        answer_all_and_note(stream, Arc::default()).await;
    }

    async fn answer_all_and_note(stream: UnixStream, noted: Arc<Mutex<Vec<Question>>>) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let question: Question = serde_json::from_str(&line).unwrap();
            let told = Told { id: question.id, ready: true, evictions: 0 };
            noted.lock().push(question);
            write.write_all((serde_json::to_string(&told).unwrap() + "\n").as_bytes()).await.unwrap();
        }
    }

    /// From now on the agent answers who connects.
    fn wake(agent: UnixListener) {
        tokio::spawn(async move {
            while let Ok((stream, _)) = agent.accept().await {
                tokio::spawn(answer_all(stream));
            }
        });
    }

    const SHORT: Patience = Patience {
        answer: Duration::from_secs(1),
        write: Duration::from_millis(200),
        pause: Duration::from_millis(300),
    };

    fn line(directory: &tempfile::TempDir) -> (UnixListener, AgentLine) {
        let agent = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
        (agent, AgentLine::start_with(directory.path(), TtlBounds::default(), SHORT))
    }

    async fn until_it_speaks(line: &AgentLine) {
        let spoken = async {
            while line.ask(given("a.example".into())).await != Some(Reach::Ready) {
                tokio::time::sleep(TICK).await;
            }
        };
        timeout(Duration::from_secs(30), spoken).await.expect("the agent is heard again");
    }

    /// Each new answer waited two seconds for an agent that hung.
    #[tokio::test]
    async fn an_agent_that_hangs_is_waited_for_once_until_it_speaks() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, line) = line(&directory);
        assert_eq!(line.ask(given("a.example".into())).await, None);
        let begin = Instant::now();
        for n in 0..30 {
            assert_eq!(line.ask(given(format!("n{n}.example"))).await, None);
        }
        assert!(begin.elapsed() < 10 * SHORT.answer, "nobody waits again");
        wake(agent);
        until_it_speaks(&line).await;
    }

    /// Only what was fresh was told: what had ended by then stayed open in the kernel until the next agent.
    #[tokio::test]
    async fn an_agent_that_speaks_again_hears_of_what_was_opened_without_it_though_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, line) = line(&directory);
        let address = ([192, 0, 2, 7].into(), Duration::from_millis(1));
        let brief = Learned { name: "brief.example".into(), addresses: vec![address] };
        assert_eq!(line.ask(given("brief.example".into())).await, None);
        assert!(line.note_opened(&brief));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((stream, _)) = agent.accept().await {
                let noted = Arc::clone(&noted);
                tokio::spawn(answer_all_and_note(stream, noted));
            }
        });
        until_it_speaks(&line).await;
        let is_settled = || line.shared.opened.all(std::time::Instant::now()).is_empty();
        let settled = async {
            while !is_settled() {
                tokio::time::sleep(TICK).await;
            }
        };
        timeout(Duration::from_secs(30), settled).await.expect("it is told");
        let heard = heard.lock();
        // Connections that were given up may have told it, too.
        let told = heard.iter().rfind(|question: &&Question| !question.opened.is_empty()).unwrap();
        assert_eq!((&told.addresses[..], &told.opened[..]), (&[][..], &[address.0][..]));
    }

    /// The line hung with the agent, for as long as the agent did not read.
    #[tokio::test]
    async fn an_agent_that_does_not_read_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, line) = line(&directory);
        // More than the socket holds.
        for n in 0..QUEUE {
            line.tell(given(format!("{n}.{}", "a".repeat(4096))));
        }
        let (unread, _) = agent.accept().await.unwrap();
        let given_up = async {
            while !line.shared.is_silent() {
                tokio::time::sleep(TICK).await;
            }
        };
        timeout(Duration::from_secs(30), given_up).await.expect("nobody waits for ever");
        wake(agent);
        until_it_speaks(&line).await;
        drop(unread);
    }
}
