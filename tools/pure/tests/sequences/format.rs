// SPDX-License-Identifier: GPL-2.0

//! The text of a sequence. Each step is a line with an operation and its outcome, followed by lines
//! that begin with a tab and say what has changed:
//!
//! ```text
//! release 0x20 7 -> ok 5
//!     is 0x20 7 invalid
//! ```
//!
//! Everything else has to be as it was: kinds, contents and frames.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use crate::model::{Cell, Effect, Outcome};
use crate::ops::{Op, Policy};

/// What the first line says.
const HEADER: &str = "p2m-sequence 1";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequence(pub(crate) Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) outcome: Outcome,
    pub(crate) effects: Vec<Effect>,
}

impl Display for Sequence {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        for Step {
            op,
            outcome,
            effects,
        } in &self.0
        {
            writeln!(f, "{op} -> {outcome}")?;
            for effect in effects {
                writeln!(f, "\t{effect}")?;
            }
        }
        Ok(())
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Create {
                base,
                nr,
                policy,
                seed,
                flags,
            } => {
                let policy = policy.name();
                write!(f, " {base:#x} {nr} {policy} {seed} {flags}")
            }
            Self::Move {
                pfn,
                nr,
                policy,
                seed,
            } => write!(f, " {pfn:#x} {nr} {} {seed}", policy.name()),
            Self::Destroy { base: pfn } | Self::Unlend { slot: pfn } => write!(f, " {pfn:#x}"),
            Self::Touch { pfn, tag } => write!(f, " {pfn:#x} {tag}"),
            Self::Release { pfn, nr } | Self::Populate { pfn, nr } | Self::Identity { pfn, nr } => {
                write!(f, " {pfn:#x} {nr}")
            }
            Self::Contiguous { pfn, order } | Self::Evacuate { pfn, order } => {
                write!(f, " {pfn:#x} {order}")
            }
            Self::Exchange { a, b, nr } => write!(f, " {a:#x} {b:#x} {nr}"),
            Self::Lend { slot, lent } => write!(f, " {slot:#x} {lent}"),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())?;
        match self {
            Self::Done(pages) | Self::Partly(_, pages) => write!(f, " {pages}"),
            Self::Ok | Self::Failed(_) => Ok(()),
        }
    }
}

impl Display for Effect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is { pfn, nr, cell } => {
                write!(f, "is {pfn:#x} {nr} ")?;
                match cell {
                    Cell::Invalid => f.write_str("invalid"),
                    Cell::Identity => f.write_str("identity"),
                    Cell::Frame(tag) => write!(f, "frame {tag}"),
                    Cell::Foreign(lent) => write!(f, "foreign {lent}"),
                }
            }
            Self::Moves { pfn, nr } => write!(f, "moves {pfn:#x} {nr}"),
            Self::Run { pfn, nr } => write!(f, "run {pfn:#x} {nr}"),
            Self::Scattered { pfn, nr } => write!(f, "scattered {pfn:#x} {nr}"),
            Self::Swaps { a, b, nr } => write!(f, "swaps {a:#x} {b:#x} {nr}"),
        }
    }
}

/// What can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad(String);

struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a str, Bad> {
        self.0.next().ok_or_else(|| Bad("a word is missing".into()))
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Bad> {
        let word = self.word()?;
        let number = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        };
        let number = number.and_then(|number| number.try_into().ok());
        number.ok_or_else(|| Bad(format!("{word} is no number")))
    }

    fn policy(&mut self) -> Result<Policy, Bad> {
        let word = self.word()?;
        let found = Policy::ALL.into_iter().find(|policy| policy.name() == word);
        found.ok_or_else(|| Bad(format!("{word} is no policy")))
    }

    fn op(&mut self) -> Result<Op, Bad> {
        Ok(match self.word()? {
            "create" => Op::Create {
                base: self.number()?,
                nr: self.number()?,
                policy: self.policy()?,
                seed: self.number()?,
                flags: self.number()?,
            },
            "destroy" => Op::Destroy {
                base: self.number()?,
            },
            "touch" => Op::Touch {
                pfn: self.number()?,
                tag: self.number()?,
            },
            "release" => Op::Release {
                pfn: self.number()?,
                nr: self.number()?,
            },
            "populate" => Op::Populate {
                pfn: self.number()?,
                nr: self.number()?,
            },
            "move" => Op::Move {
                pfn: self.number()?,
                nr: self.number()?,
                policy: self.policy()?,
                seed: self.number()?,
            },
            "contiguous" => Op::Contiguous {
                pfn: self.number()?,
                order: self.number()?,
            },
            "exchange" => Op::Exchange {
                a: self.number()?,
                b: self.number()?,
                nr: self.number()?,
            },
            "evacuate" => Op::Evacuate {
                pfn: self.number()?,
                order: self.number()?,
            },
            "lend" => Op::Lend {
                slot: self.number()?,
                lent: self.number()?,
            },
            "unlend" => Op::Unlend {
                slot: self.number()?,
            },
            "identity" => Op::Identity {
                pfn: self.number()?,
                nr: self.number()?,
            },
            word => return Err(Bad(format!("{word} is no operation"))),
        })
    }

    fn outcome(&mut self) -> Result<Outcome, Bad> {
        let word = self.word()?;
        let error = Outcome::ERRORS.into_iter().find(|error| *error == word);
        match (word, error) {
            ("ok", _) if self.is_empty() => Ok(Outcome::Ok),
            ("ok", _) => Ok(Outcome::Done(self.number()?)),
            (_, Some(error)) if self.is_empty() => Ok(Outcome::Failed(error)),
            (_, Some(error)) => Ok(Outcome::Partly(error, self.number()?)),
            _ => Err(Bad(format!("{word} is no outcome"))),
        }
    }

    fn effect(&mut self) -> Result<Effect, Bad> {
        let name = self.word()?;
        if name == "swaps" {
            return Ok(Effect::Swaps {
                a: self.number()?,
                b: self.number()?,
                nr: self.number()?,
            });
        }
        let (pfn, nr) = (self.number()?, self.number()?);
        Ok(match name {
            "is" => Effect::Is {
                pfn,
                nr,
                cell: match self.word()? {
                    "invalid" => Cell::Invalid,
                    "identity" => Cell::Identity,
                    "frame" => Cell::Frame(self.number()?),
                    "foreign" => Cell::Foreign(self.number()?),
                    word => return Err(Bad(format!("nothing is {word}"))),
                },
            },
            "moves" => Effect::Moves { pfn, nr },
            "run" => Effect::Run { pfn, nr },
            "scattered" => Effect::Scattered { pfn, nr },
            word => return Err(Bad(format!("{word} is no effect"))),
        })
    }

    fn is_empty(&self) -> bool {
        self.0.clone().next().is_none()
    }

    fn end<T>(&self, value: T) -> Result<T, Bad> {
        match self.is_empty() {
            true => Ok(value),
            false => Err(Bad("a word too many".into())),
        }
    }
}

impl FromStr for Sequence {
    type Err = Bad;

    fn from_str(text: &str) -> Result<Self, Bad> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(Bad("not a sequence".into()));
        }
        let mut steps: Vec<Step> = Vec::new();
        for line in lines {
            let mut words = Words(line.split_whitespace());
            if line.starts_with('\t') {
                let effect = words.effect()?;
                let step = steps.last_mut().ok_or(Bad("an effect of nothing".into()))?;
                step.effects.push(words.end(effect)?);
                continue;
            }
            let op = words.op()?;
            if words.word()? != "->" {
                return Err(Bad(format!("no outcome: {line}")));
            }
            let outcome = words.outcome()?;
            steps.push(words.end(Step {
                op,
                outcome,
                effects: Vec::new(),
            })?);
        }
        Ok(Self(steps))
    }
}
