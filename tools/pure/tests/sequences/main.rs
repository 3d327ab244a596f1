// SPDX-License-Identifier: GPL-2.0

//! Random sequences of all operations that change a P2M, against a shadow model.
//!
//! The model is a list of pages: what is at each PFN, and with which contents. It says what becomes
//! of an operation before it is done. What does it here is the pure part, put together as the module
//! does; so whatever is wrong in the maps, in a policy or in the order of steps is found here.
//!
//! Some sequences are recorded in `selftests/sequences/`, with what the model has said. The test of
//! the same name replays them on `/dev/p2m`. To record them again:
//!
//! ```text
//! cargo test -p p2m-pure --test sequences -- --ignored record
//! ```

mod format;
mod model;
mod ops;
mod replay;

use std::path::PathBuf;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::format::{Sequence, Step};
use crate::model::Model;
use crate::replay::Replay;

/// What is recorded: a name, a seed, and how many steps.
const RECORDED: [(&str, u8, usize); 6] = [
    ("everything-1", 1, 600),
    ("everything-2", 2, 600),
    ("everything-3", 3, 600),
    ("everything-4", 4, 600),
    ("everything-5", 5, 600),
    ("everything-6", 6, 600),
];

fn path(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../selftests/sequences");
    PathBuf::from(root).join(name).with_extension("p2m")
}

/// Makes a sequence of operations, with what the model says of each.
fn sequence(choices: impl IntoIterator<Item = ops::Choice>) -> Sequence {
    let mut model = Model::new();
    let steps = choices.into_iter().filter_map(|choice| {
        let op = choice.op(&model)?;
        let (outcome, effects) = model.apply(&op);
        Some(Step {
            op,
            outcome,
            effects,
        })
    });
    Sequence(steps.collect())
}

/// Makes the sequence of a seed, by the generator of the test below.
fn generate(seed: u8, nr_steps: usize) -> Sequence {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let choices = std::iter::from_fn(|| {
        let tree = ops::choice().new_tree(&mut runner).ok()?;
        Some(tree.current())
    });
    // Some choices make no sense where they come.
    let mut sequence = sequence(choices.take(2 * nr_steps));
    sequence.0.truncate(nr_steps);
    sequence
}

/// Does all steps, and compares everything after each.
fn replay(sequence: &Sequence) {
    let mut replay = Replay::new();
    for (nr, step) in sequence.0.iter().enumerate() {
        replay.step(step).unwrap_or_else(|error| {
            panic!("step {nr}: {}: {error}", step.op);
        });
    }
    replay.finish();
}

proptest! {
    // 20000 steps and more.
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn random_sequences_follow_the_model(
        choices in prop::collection::vec(ops::choice(), 150..250),
    ) {
        replay(&sequence(choices));
    }

    #[test]
    fn a_sequence_is_read_as_it_was_written(
        choices in prop::collection::vec(ops::choice(), 0..60),
    ) {
        let sequence = sequence(choices);
        let text = sequence.to_string();
        prop_assert_eq!(text.parse(), Ok(sequence));
    }
}

#[test]
fn recorded_sequences_are_replayed() {
    for (name, ..) in RECORDED {
        let text = std::fs::read_to_string(path(name)).expect("a recorded sequence");
        let sequence: Sequence = text.parse().expect("a sequence");
        replay(&sequence);
    }
}

/// Nobody has edited them, and the generator is what it was.
#[test]
fn recorded_sequences_are_those_of_their_seeds() {
    for (name, seed, nr_steps) in RECORDED {
        let text = std::fs::read_to_string(path(name)).expect("a recorded sequence");
        let expected = generate(seed, nr_steps).to_string();
        assert!(text == expected, "{name}: record it again");
    }
}

/// A sequence in which something never happens shows nothing about it.
#[test]
fn recorded_sequences_have_every_operation_succeed_and_fail() {
    let mut seen = std::collections::BTreeSet::new();
    for (_, seed, nr_steps) in RECORDED {
        for step in generate(seed, nr_steps).0 {
            let (name, outcome) = (step.op.name(), step.outcome.class());
            seen.insert((name, outcome));
        }
    }
    for expected in [
        ("create", "ok"),
        ("create", "EEXIST"),
        ("create", "EINVAL"),
        ("destroy", "ok"),
        ("destroy", "ENOENT"),
        ("touch", "ok"),
        ("touch", "SIGBUS"),
        ("release", "ok"),
        ("release", "ENOENT"),
        ("populate", "ok"),
        ("populate", "ENOENT"),
        ("move", "ok"),
        ("contiguous", "ok"),
        ("contiguous", "EFAULT"),
        ("contiguous", "EINVAL"),
        ("contiguous", "ENOENT"),
        ("exchange", "ok"),
        ("exchange", "EFAULT"),
        ("exchange", "EINVAL"),
        ("exchange", "ENOENT"),
        ("evacuate", "ok"),
        ("lend", "ok"),
        ("lend", "EEXIST"),
        ("lend", "EFAULT"),
        ("lend", "ENOENT"),
        ("unlend", "ok"),
        ("unlend", "EINVAL"),
        ("identity", "ok"),
        ("identity", "EEXIST"),
        ("identity", "ENOENT"),
        ("identity", "EINVAL"),
    ] {
        assert!(seen.contains(&expected), "never seen: {expected:?}");
    }
}

#[test]
#[ignore = "writes to the source tree"]
fn record() {
    for (name, seed, nr_steps) in RECORDED {
        let text = generate(seed, nr_steps).to_string();
        std::fs::write(path(name), text).expect("write");
    }
}
