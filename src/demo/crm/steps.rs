//! Which transactions the live workload is made of, and how often each comes.

use super::edits::{self, Direction};
use super::random::Random;
use tokio_postgres::{Error, Transaction};

/// One kind of transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    NewLead,
    InboundMessage,
    OutboundMessage,
    StateChange,
    Reassignment,
    FollowUpSweep,
    AbandonedReply,
    LogReview,
    ClientSettings,
    LeadDeletion,
}

/// How often each step is drawn, out of 100.
const WEIGHTS: [(Step, u32); 10] = [
    (Step::InboundMessage, 30),
    (Step::OutboundMessage, 25),
    (Step::StateChange, 12),
    (Step::NewLead, 10),
    (Step::Reassignment, 7),
    (Step::FollowUpSweep, 4),
    (Step::AbandonedReply, 4),
    (Step::LogReview, 3),
    (Step::LeadDeletion, 3),
    (Step::ClientSettings, 2),
];

impl Step {
    /// The next step of the seed's sequence.
    pub(super) fn draw(random: &mut Random) -> Self {
        let mut left = random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (step, weight) in WEIGHTS {
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return step,
            }
        }
        Self::InboundMessage
    }

    /// What it does, as it stands in counts and messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NewLead => "add a lead",
            Self::InboundMessage => "receive a message",
            Self::OutboundMessage => "send a message",
            Self::StateChange => "change a lead's state",
            Self::Reassignment => "assign a lead to another project",
            Self::FollowUpSweep => "plan follow-ups",
            Self::AbandonedReply => "roll back to a savepoint",
            Self::LogReview => "review a log line",
            Self::ClientSettings => "change a client's settings",
            Self::LeadDeletion => "delete a lead",
        }
    }

    /// Carries it out inside `tx`; false when there was no row to work on.
    pub(super) async fn run(
        self,
        tx: &mut Transaction<'_>,
        random: &mut Random,
    ) -> Result<bool, Error> {
        match self {
            Self::NewLead => edits::new_lead(tx, random).await,
            Self::FollowUpSweep => edits::follow_up_sweep(tx, random).await,
            Self::LogReview => edits::log_review(tx, random).await,
            Self::ClientSettings => edits::client_settings(tx, random).await,
            Self::InboundMessage
            | Self::OutboundMessage
            | Self::StateChange
            | Self::Reassignment
            | Self::AbandonedReply
            | Self::LeadDeletion => {
                let Some(lead) = edits::lock_lead(tx, random).await? else {
                    return Ok(false);
                };
                match self {
                    Self::StateChange => edits::state_change(tx, random, &lead).await,
                    Self::Reassignment => edits::reassignment(tx, random, &lead).await,
                    Self::AbandonedReply => edits::abandoned_reply(tx, random, &lead).await,
                    Self::LeadDeletion => edits::delete_lead(tx, &lead).await,
                    Self::OutboundMessage => {
                        edits::message(tx, random, &lead, Direction::Outbound).await
                    }
                    _ => edits::message(tx, random, &lead, Direction::Inbound).await,
                }?;
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_drawn_and_a_seed_repeats_itself() {
        let draw = || {
            let mut random = Random::new(42);
            (0..1000)
                .map(|_| Step::draw(&mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        for (step, _) in WEIGHTS {
            assert!(draw().contains(&step), "{step:?}");
        }
        assert_eq!(WEIGHTS.iter().map(|(_, weight)| weight).sum::<u32>(), 100);
    }
}
