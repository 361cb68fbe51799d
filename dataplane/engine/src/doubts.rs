//! What is in doubt while a control process that begins anew says again which SAs, SPIs and policies there are
//! ([`Command::Doubt`](spindle_abi::Command) to `Sweep`). Meanwhile all are in use as before.

use crate::Engine;
use crate::sas::Holder;
use spindle_abi::{Command, Spi, SpiState};
use std::collections::HashSet;

/// Nothing, as a rule.
#[derive(Default)]
pub(crate) struct Doubts {
    spis: HashSet<Spi>,
    /// Of outbound SAs: inbound ones go with their SPIs.
    indexes: HashSet<u32>,
    policies: HashSet<u32>,
}

impl Doubts {
    fn dispel(&mut self, command: &Command) {
        match command {
            Command::SetPolicy { id, .. } | Command::BindPolicy { id, .. } => {
                self.policies.remove(id);
            }
            Command::SetSpiState { spi, .. } | Command::ConfirmInbound { spi, .. } => {
                self.spis.remove(spi);
            }
            Command::SetFormer { spis } => spis.iter().for_each(|spi| {
                self.spis.remove(spi);
            }),
            Command::InstallInbound { sa, .. } => {
                self.spis.remove(&sa.spi);
            }
            Command::InstallOutbound { sa } => {
                self.indexes.remove(&sa.index);
            }
            _ => {}
        }
    }
}

impl Engine {
    /// All is in doubt.
    pub(crate) fn doubt(&mut self) {
        self.doubts = Doubts {
            spis: self.spis.all().collect(),
            indexes: self.sas.outbound_indexes().chain(self.others.outbound_indexes()).collect(),
            policies: self.policy_ids().collect(),
        };
    }

    /// SPIs that are in doubt: the next `Sweep` makes them unknown.
    pub fn spis_in_doubt(&self) -> impl Iterator<Item = Spi> {
        self.doubts.spis.iter().copied()
    }

    /// What this command is about stands.
    pub(crate) fn dispel_doubts(&mut self, command: &Command) {
        match command {
            Command::InstallInbound { sa, .. } => self.make_way(sa.index, Holder::Inbound(sa.spi)),
            Command::InstallOutbound { sa } => self.make_way(sa.index, Holder::Outbound(sa.spi)),
            _ => {}
        }
        self.doubts.dispel(command);
    }

    /// An SA in doubt gives way to another one that has its index now: the commands between the two died with control.
    fn make_way(&mut self, index: u32, new: Holder) {
        if self.doubts.indexes.contains(&index) && self.outbound_spi(index).map(Holder::Outbound) != Some(new)
        {
            self.doubts.indexes.remove(&index);
            self.remove_outbound(index);
        }
        match self.sas.holder(index) {
            old @ Holder::Inbound(spi) if old != new && self.doubts.spis.contains(&spi) => {
                // Removing is never refused.
                let _ = self.set_spi_state(spi, SpiState::Retired);
            }
            _ => {}
        }
    }

    /// Of an outbound SA, whichever worker's.
    fn outbound_spi(&self, index: u32) -> Option<Spi> {
        match self.sas.holder(index) {
            Holder::Outbound(spi) => Some(spi),
            _ => self.others.spi(index),
        }
    }

    /// What is still in doubt goes.
    pub(crate) fn sweep_doubts(&mut self) {
        let Doubts { spis, indexes, policies } = std::mem::take(&mut self.doubts);
        for index in indexes {
            self.remove_outbound(index);
        }
        for spi in spis {
            if self.spis.state(spi) == SpiState::Current {
                // Removing is never refused.
                let _ = self.set_spi_state(spi, SpiState::Retired);
            }
            let _ = self.set_spi_state(spi, SpiState::Unknown);
        }
        policies.into_iter().for_each(|id| self.policies_with(id).remove(id));
    }
}
