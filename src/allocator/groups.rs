//! Which security groups exist, and in which VPC.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::api::SecurityGroupId;
use crate::ec2::calls::Ec2;
use crate::ec2::error::{Ec2Error, NO_ANSWER};

/// How long a group that exists is taken to go on existing.
const EXISTING_FOR: Duration = Duration::from_secs(60);
/// How long before that EC2 is asked again, while the answer still holds: who asks often
/// never waits.
const ASKED_AHEAD: Duration = Duration::from_secs(30);
/// How long a group that does not exist is taken not to; somebody may be waiting for it.
const MISSING_FOR: Duration = Duration::from_secs(2);
/// How long a group is waited for before EC2 has to refuse it once more.
const AWAITED_FOR: Duration = Duration::from_secs(600);
/// The most groups that one call asks for: the most values of a filter (Amazon EC2 API
/// Reference, `Filter`).
const ASKED_AT_ONCE: usize = 200;
/// The most groups that are remembered; their ids are what users write.
const MOST_KNOWN: usize = 10_000;
/// The most groups that are waited for.
const MOST_AWAITED: usize = 1_000;

/// What EC2 says of a security group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GroupStatus {
    /// There is no such group.
    Missing,
    /// It exists.
    Exists {
        /// The VPC that it is in.
        vpc_id: String,
    },
}

/// The security groups that EC2 has been asked for.
///
/// At most one call is under way at a time. Questions that come meanwhile are asked together
/// by the next one, and each is asked to its end, though nobody may be waiting any more: who
/// asks again finds the answer.
pub struct GroupDirectory {
    ec2: Arc<dyn Ec2>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Known>,
    /// When EC2 refused a call because of a group.
    refused: HashMap<String, Instant>,
    /// At most one that has begun, and one that waits for it.
    questions: Vec<Question>,
    /// Numbers the questions.
    last: u64,
}

struct Known {
    status: GroupStatus,
    until: Instant,
}

type Statuses = HashMap<String, GroupStatus>;
type Answer = Shared<BoxFuture<'static, Result<Arc<Statuses>, Ec2Error>>>;

struct Question {
    number: u64,
    ids: BTreeSet<String>,
    has_begun: bool,
    task: AbortHandle,
    answer: Answer,
}

impl GroupDirectory {
    /// Knows no group yet.
    pub fn new(ec2: Arc<dyn Ec2>) -> Self {
        Self {
            ec2,
            state: Arc::default(),
        }
    }

    /// What EC2 says of each of these groups, at most a minute ago of one that exists and two
    /// seconds ago of one that does not. A malformed id is that of no group.
    ///
    /// # Errors
    ///
    /// EC2 could not be asked for those that are not known.
    pub async fn look_up(&self, ids: &[String]) -> Result<HashMap<String, GroupStatus>, Ec2Error> {
        let mut statuses = HashMap::new();
        let answers = {
            let mut state = lock(&self.state);
            let now = Instant::now();
            let (mut unknown, mut aging) = (BTreeSet::new(), BTreeSet::new());
            for id in ids {
                let known = state.known.get(id).filter(|known| now < known.until);
                if !is_well_formed(id) {
                    statuses.insert(id.clone(), GroupStatus::Missing);
                } else if let Some(known) = known {
                    let is_there = known.status != GroupStatus::Missing;
                    if is_there && now + ASKED_AHEAD >= known.until {
                        aging.insert(id.clone());
                    }
                    statuses.insert(id.clone(), known.status.clone());
                } else {
                    unknown.insert(id.clone());
                }
            }
            let answers = self.ask(&mut state, unknown);
            // Together with the unknown ones, but nobody waits for these.
            self.ask(&mut state, aging);
            answers
        };
        for answer in answers {
            let answer = answer.await?;
            for id in ids {
                if let Some(status) = answer.get(id) {
                    statuses.insert(id.clone(), status.clone());
                }
            }
        }
        Ok(statuses)
    }

    /// Notes that EC2 refused a call because it knows no such group.
    pub fn note_missing(&self, id: &str) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.remember(id, &GroupStatus::Missing, now);
        if state.refused.len() >= MOST_AWAITED && !state.refused.contains_key(id) {
            let oldest = state.refused.iter().min_by_key(|(_, since)| **since);
            if let Some(id) = oldest.map(|(id, _)| id.clone()) {
                state.refused.remove(&id);
            }
        }
        state.refused.insert(id.to_owned(), now);
    }

    /// The groups because of which EC2 refused a call and which have not been found since, in
    /// order.
    ///
    /// One is left out ten minutes after [`note_missing`](Self::note_missing), so that those
    /// that nobody wants any more are forgotten; a call that still wants it is refused again.
    pub fn missing(&self) -> Vec<String> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.refused.retain(|_, since| now < *since + AWAITED_FOR);
        let mut ids: Vec<_> = state.refused.keys().cloned().collect();
        ids.sort_unstable();
        ids
    }

    /// Asks EC2 for all that are [missing](Self::missing) and gives those that exist now; they
    /// are missing no more.
    ///
    /// # Errors
    ///
    /// EC2 could not be asked; all are missing as before.
    pub async fn recheck(&self) -> Result<Vec<String>, Ec2Error> {
        let missing = self.missing();
        let askable = missing.iter().filter(|id| is_well_formed(id)).cloned();
        let answers = self.ask(&mut lock(&self.state), askable.collect());
        let mut statuses = HashMap::new();
        for answer in answers {
            let answer = answer.await?;
            statuses.extend(
                answer
                    .iter()
                    .map(|(id, status)| (id.clone(), status.clone())),
            );
        }
        let exists = |id: &String| matches!(statuses.get(id), Some(GroupStatus::Exists { .. }));
        let found: Vec<_> = missing.into_iter().filter(exists).collect();
        let mut state = lock(&self.state);
        for id in &found {
            state.refused.remove(id);
        }
        Ok(found)
    }

    /// The answers that together hold all of these groups.
    fn ask(&self, state: &mut State, mut ids: BTreeSet<String>) -> Vec<Answer> {
        state
            .questions
            .retain(|question| !question.task.is_finished());
        let mut answers = Vec::new();
        for question in &state.questions {
            let before = ids.len();
            ids.retain(|id| !question.ids.contains(id));
            if ids.len() < before {
                answers.push(question.answer.clone());
            }
        }
        if ids.is_empty() {
            return answers;
        }
        let next = state
            .questions
            .iter_mut()
            .find(|question| !question.has_begun);
        match next {
            Some(next) => {
                next.ids.extend(ids);
                answers.push(next.answer.clone());
            }
            None => answers.push(self.question(state, ids)),
        }
        answers
    }

    /// A new question, to be asked once the one under way is answered.
    fn question(&self, state: &mut State, ids: BTreeSet<String>) -> Answer {
        state.last += 1;
        let number = state.last;
        let previous = state
            .questions
            .last()
            .map(|question| question.answer.clone());
        let (ec2, shared) = (self.ec2.clone(), self.state.clone());
        let task = tokio::spawn(async move {
            if let Some(previous) = previous {
                // Its answer is for others, whatever it is.
                let _ = previous.await;
            }
            let ids = lock(&shared).begin(number);
            let answer = ask_ec2(ec2.as_ref(), &ids).await?;
            let mut state = lock(&shared);
            let now = Instant::now();
            for (id, status) in &answer {
                state.remember(id, status, now);
            }
            Ok(Arc::new(answer))
        });
        let abort = task.abort_handle();
        let answer = task.map(|ended| ended.unwrap_or_else(|_| Err(cut_off())));
        let answer = answer.boxed().shared();
        state.questions.push(Question {
            number,
            ids,
            has_begun: false,
            task: abort,
            answer: answer.clone(),
        });
        answer
    }
}

impl State {
    /// The groups of a question, to which no more are added from now on.
    fn begin(&mut self, number: u64) -> Vec<String> {
        let question = self
            .questions
            .iter_mut()
            .find(|question| question.number == number);
        question.map_or_else(Vec::new, |question| {
            question.has_begun = true;
            question.ids.iter().cloned().collect()
        })
    }

    fn remember(&mut self, id: &str, status: &GroupStatus, now: Instant) {
        if self.known.len() >= MOST_KNOWN && !self.known.contains_key(id) {
            self.known.retain(|_, known| now < known.until);
            if self.known.len() >= MOST_KNOWN {
                return;
            }
        }
        let for_so_long = match status {
            GroupStatus::Missing => MISSING_FOR,
            GroupStatus::Exists { .. } => EXISTING_FOR,
        };
        let known = Known {
            status: status.clone(),
            until: now + for_so_long,
        };
        self.known.insert(id.to_owned(), known);
    }
}

async fn ask_ec2(ec2: &dyn Ec2, ids: &[String]) -> Result<Statuses, Ec2Error> {
    let missing = ids.iter().map(|id| (id.clone(), GroupStatus::Missing));
    let mut statuses: Statuses = missing.collect();
    for some in ids.chunks(ASKED_AT_ONCE) {
        for group in ec2.security_groups(some.to_vec()).await? {
            let vpc_id = group.vpc_id;
            statuses.insert(group.id, GroupStatus::Exists { vpc_id });
        }
    }
    Ok(statuses)
}

fn is_well_formed(id: &str) -> bool {
    SecurityGroupId::from(id).is_well_formed()
}

/// The question was ended by the end of the process or by a bug.
fn cut_off() -> Ec2Error {
    Ec2Error::new(
        "DescribeSecurityGroups",
        NO_ANSWER,
        "the question was cut off",
    )
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .expect("no one panics while the groups are locked")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ec2::calls;
    use crate::ec2::calls::{
        Association, Filter, Instance, Interface, NewAssociation, NewInterface, Priority,
        SecurityGroup, Subnet,
    };
    use crate::ec2::instance_limits::InstanceLimits;
    use std::collections::BTreeMap;
    use tokio::sync::Semaphore;

    const A: &str = "sg-0000000a";
    const B: &str = "sg-0000000b";
    const C: &str = "sg-0000000c";

    /// Knows security groups and nothing else.
    pub(crate) struct Groups {
        /// The groups that exist, with their VPCs.
        pub(crate) exist: Mutex<HashMap<&'static str, &'static str>>,
        /// What was asked for, call by call.
        pub(crate) asked: Mutex<Vec<Vec<String>>>,
        /// Calls fail with this.
        pub(crate) error: Mutex<Option<Ec2Error>>,
        /// A call takes one to answer.
        may_answer: Semaphore,
    }

    impl Groups {
        /// Answers at once.
        pub(crate) fn new(exist: &[(&'static str, &'static str)]) -> Arc<Self> {
            let groups = Self::silent(exist);
            groups.may_answer.add_permits(1_000);
            groups
        }

        fn silent(exist: &[(&'static str, &'static str)]) -> Arc<Self> {
            Arc::new(Self {
                exist: Mutex::new(exist.iter().copied().collect()),
                asked: Mutex::default(),
                error: Mutex::default(),
                may_answer: Semaphore::new(0),
            })
        }

        fn asked(&self) -> Vec<Vec<String>> {
            self.asked.lock().unwrap().clone()
        }

        fn create(&self, id: &'static str) {
            self.exist.lock().unwrap().insert(id, "vpc-1");
        }

        fn fail(&self, error: Option<Ec2Error>) {
            *self.error.lock().unwrap() = error;
        }
    }

    fn never<'a, T: 'a>() -> calls::Answer<'a, T> {
        Box::pin(async { unreachable!("nobody asks for anything but groups") })
    }

    impl Ec2 for Groups {
        fn security_groups(&self, ids: Vec<String>) -> calls::Answer<'_, Vec<SecurityGroup>> {
            Box::pin(async move {
                self.asked.lock().unwrap().push(ids.clone());
                self.may_answer.acquire().await.unwrap().forget();
                if let Some(error) = self.error.lock().unwrap().clone() {
                    return Err(error);
                }
                let exist = self.exist.lock().unwrap();
                let groups = ids.into_iter().filter_map(|id| {
                    let vpc_id = exist.get(id.as_str())?.to_string();
                    Some(SecurityGroup { id, vpc_id })
                });
                Ok(groups.collect())
            })
        }

        fn interfaces(&self, _: Vec<Filter>, _: Priority) -> calls::Answer<'_, Vec<Interface>> {
            never()
        }
        fn instances(&self, _: Vec<String>, _: Priority) -> calls::Answer<'_, Vec<Instance>> {
            never()
        }
        fn subnets(&self, _: Vec<String>) -> calls::Answer<'_, Vec<Subnet>> {
            never()
        }
        fn instance_limits(&self, _: String) -> calls::Answer<'_, Option<InstanceLimits>> {
            never()
        }
        fn associations(&self) -> calls::Answer<'_, Vec<Association>> {
            never()
        }
        fn create_interface(&self, _: NewInterface) -> calls::Answer<'_, Interface> {
            never()
        }
        fn attach(&self, _: String, _: String, _: i32) -> calls::Answer<'_, String> {
            never()
        }
        fn delete_on_termination(&self, _: String, _: String) -> calls::Answer<'_, ()> {
            never()
        }
        fn set_groups(&self, _: String, _: Vec<String>) -> calls::Answer<'_, ()> {
            never()
        }
        fn associate(&self, _: NewAssociation) -> calls::Answer<'_, String> {
            never()
        }
        fn disassociate(&self, _: String) -> calls::Answer<'_, ()> {
            never()
        }
        fn detach(&self, _: String) -> calls::Answer<'_, ()> {
            never()
        }
        fn tag_interface(&self, _: String, _: BTreeMap<String, String>) -> calls::Answer<'_, ()> {
            never()
        }
        fn delete_interface(&self, _: String) -> calls::Answer<'_, ()> {
            never()
        }
    }

    pub(crate) fn forbidden() -> Ec2Error {
        Ec2Error::new(
            "DescribeSecurityGroups",
            "UnauthorizedOperation",
            "You are not authorized",
        )
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| id.to_string()).collect()
    }

    fn exists() -> GroupStatus {
        GroupStatus::Exists {
            vpc_id: "vpc-1".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_asks_for_all_that_is_not_known() {
        let ec2 = Groups::new(&[(A, "vpc-1"), (B, "vpc-2")]);
        let directory = GroupDirectory::new(ec2.clone());
        let statuses = directory.look_up(&ids(&[A, B, C])).await.unwrap();
        assert_eq!(statuses[A], exists());
        let vpc_id = "vpc-2".to_owned();
        assert_eq!(statuses[B], GroupStatus::Exists { vpc_id });
        assert_eq!(statuses[C], GroupStatus::Missing);
        assert_eq!(ec2.asked(), [ids(&[A, B, C])]);

        let statuses = directory.look_up(&ids(&[C, A])).await.unwrap();
        assert_eq!(
            (&statuses[A], &statuses[C]),
            (&exists(), &GroupStatus::Missing)
        );
        assert_eq!(ec2.asked().len(), 1, "all is known");

        tokio::time::advance(MISSING_FOR).await;
        ec2.create(C);
        let statuses = directory.look_up(&ids(&[A, C])).await.unwrap();
        assert_eq!(statuses[C], exists());
        assert_eq!(ec2.asked()[1..], [ids(&[C])], "a missing one may have come");

        tokio::time::advance(EXISTING_FOR - MISSING_FOR).await;
        directory.look_up(&ids(&[A, C])).await.unwrap();
        assert_eq!(
            ec2.asked()[2..],
            [ids(&[A, C])],
            "an existing one may have gone, and the other soon too old"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn group_that_is_often_asked_for_is_asked_ahead_and_nobody_waits() {
        let ec2 = Groups::silent(&[(A, "vpc-1")]);
        let directory = GroupDirectory::new(ec2.clone());
        ec2.may_answer.add_permits(1);
        let a = ids(&[A]);
        directory.look_up(&a).await.unwrap();
        tokio::time::advance(EXISTING_FOR - ASKED_AHEAD - Duration::from_secs(1)).await;
        directory.look_up(&a).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(ec2.asked().len(), 1, "it is fresh");

        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..3 {
            // EC2 does not answer yet.
            let looked_up = directory.look_up(&a).now_or_never();
            assert_eq!(looked_up.unwrap().unwrap()[A], exists());
            tokio::task::yield_now().await;
            assert_eq!(ec2.asked().len(), 2, "once");
        }
        ec2.may_answer.add_permits(1);
        tokio::time::advance(ASKED_AHEAD - Duration::from_secs(1)).await;
        while lock(&directory.state).known[A].until < Instant::now() + ASKED_AHEAD {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        let looked_up = directory.look_up(&a).now_or_never();
        assert_eq!(
            looked_up.unwrap().unwrap()[A],
            exists(),
            "the new answer holds"
        );
        assert_eq!(ec2.asked().len(), 2);
    }

    #[tokio::test]
    async fn malformed_id_does_not_exist_and_never_reaches_ec2() {
        let ec2 = Groups::new(&[("sg-1", "vpc-1")]);
        let directory = GroupDirectory::new(ec2.clone());
        let statuses = directory.look_up(&ids(&["sg-1", "", "*"])).await.unwrap();
        assert_eq!(statuses.len(), 3);
        assert!(
            statuses
                .values()
                .all(|status| *status == GroupStatus::Missing)
        );
        directory.note_missing("sg-1");
        assert!(directory.recheck().await.unwrap().is_empty());
        assert!(ec2.asked().is_empty());
    }

    #[tokio::test]
    async fn questions_that_come_while_one_is_under_way_are_asked_together() {
        let ec2 = Groups::silent(&[(A, "vpc-1")]);
        let directory = GroupDirectory::new(ec2.clone());
        let (a, ab, bc) = (ids(&[A]), ids(&[A, B]), ids(&[B, C]));
        let mut first = Box::pin(directory.look_up(&a));
        assert!(futures::poll!(&mut first).is_pending());
        while ec2.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        let mut others = Box::pin(async {
            tokio::join!(
                directory.look_up(&ab),
                directory.look_up(&bc),
                directory.look_up(&a)
            )
        });
        assert!(futures::poll!(&mut others).is_pending());
        ec2.may_answer.add_permits(2);
        let (second, third, fourth) = others.await;
        assert_eq!(first.await.unwrap()[A], exists());
        assert_eq!(second.unwrap()[A], exists());
        assert_eq!(third.unwrap()[C], GroupStatus::Missing);
        assert_eq!(fourth.unwrap()[A], exists());
        assert_eq!(ec2.asked(), [a, bc], "each group once");
    }

    #[tokio::test]
    async fn question_is_answered_though_nobody_waits_any_more() {
        let ec2 = Groups::silent(&[(A, "vpc-1")]);
        let directory = GroupDirectory::new(ec2.clone());
        let a = ids(&[A]);
        let mut gone = Box::pin(directory.look_up(&a));
        assert!(futures::poll!(&mut gone).is_pending());
        drop(gone);
        ec2.may_answer.add_permits(1);
        while lock(&directory.state).known.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(directory.look_up(&a).await.unwrap()[A], exists());
        assert_eq!(ec2.asked().len(), 1);
    }

    #[tokio::test]
    async fn failure_is_told_to_all_who_waited_and_not_remembered() {
        let ec2 = Groups::new(&[(A, "vpc-1")]);
        ec2.fail(Some(forbidden()));
        let directory = GroupDirectory::new(ec2.clone());
        let (a, known) = (ids(&[A]), ids(&["sg-"]));
        let (one, two) = tokio::join!(directory.look_up(&a), directory.look_up(&a));
        assert_eq!((one, two), (Err(forbidden()), Err(forbidden())));
        assert_eq!(ec2.asked().len(), 1);
        assert!(directory.look_up(&known).await.is_ok(), "it needs no EC2");

        ec2.fail(None);
        assert_eq!(directory.look_up(&a).await.unwrap()[A], exists());
    }

    #[tokio::test(start_paused = true)]
    async fn groups_that_ec2_refused_are_asked_for_until_they_are_there() {
        let ec2 = Groups::new(&[(A, "vpc-1")]);
        let directory = GroupDirectory::new(ec2.clone());
        directory.look_up(&ids(&[A, C])).await.unwrap();
        assert!(directory.missing().is_empty(), "no call was refused");
        assert!(directory.recheck().await.unwrap().is_empty());
        assert_eq!(ec2.asked().len(), 1, "there is nothing to ask for");

        ec2.exist.lock().unwrap().clear();
        directory.note_missing(B);
        directory.note_missing(A);
        let statuses = directory.look_up(&ids(&[A])).await.unwrap();
        assert_eq!(statuses[A], GroupStatus::Missing, "the refusal counts");
        assert!(directory.recheck().await.unwrap().is_empty());
        assert_eq!(ec2.asked()[1..], [ids(&[A, B])], "all at once");

        ec2.create(B);
        assert_eq!(directory.recheck().await.unwrap(), [B]);
        assert_eq!(directory.missing(), [A]);
        ec2.fail(Some(forbidden()));
        assert_eq!(directory.recheck().await, Err(forbidden()));
        assert_eq!(directory.missing(), [A]);

        tokio::time::advance(AWAITED_FOR).await;
        assert!(directory.missing().is_empty(), "nobody wants it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_whatever_users_write() {
        let ec2 = Groups::new(&[(A, "vpc-1")]);
        let directory = GroupDirectory::new(ec2.clone());
        let many: Vec<_> = (0..=MOST_KNOWN)
            .map(|number| format!("sg-{number:08x}"))
            .collect();
        directory.look_up(&many).await.unwrap();
        assert_eq!(lock(&directory.state).known.len(), MOST_KNOWN);
        assert!(ec2.asked().iter().all(|ids| ids.len() <= ASKED_AT_ONCE));

        tokio::time::advance(MISSING_FOR).await;
        directory.look_up(&ids(&["sg-ffffffff"])).await.unwrap();
        assert!(lock(&directory.state).known.len() < 100, "room is made");

        directory.note_missing("sg-ffffffff");
        tokio::time::advance(Duration::from_secs(1)).await;
        for id in &many[..MOST_AWAITED] {
            directory.note_missing(id);
        }
        let missing = directory.missing();
        assert_eq!(missing.len(), MOST_AWAITED);
        assert!(
            !missing.contains(&"sg-ffffffff".to_owned()),
            "the oldest goes"
        );
    }
}
