//! What the probes of a workload would show: plausible, not proof (a tenant can fake it).

use super::dice::permille;
use super::hardware::Hardware;
use crate::detector::event::Telemetry;

/// What an allocation is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Training,
    FineTuning,
    Inference,
    Batch,
    Rendering,
    Research,
}

/// What of an allocation the meter can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Allocation only.
    None,
    /// Only whether any kernel is resident.
    Utilization,
    /// Everything DCGM can profile.
    Full,
}

/// Centres in thousandths, and how far single intervals stray.
struct Profile {
    utilization: (u32, u32),
    tensor_active: (u32, u32),
    dram_active: (u32, u32),
    memory_used: (u32, u32),
    /// Share of the way from idle to peak power.
    power: (u32, u32),
    /// Kilobytes a second and accelerator, over the fabric and to the outside.
    fabric: u64,
    external: u64,
}

const fn profile(behaviour: Behaviour) -> Profile {
    match behaviour {
        // flat and busy; gradients over the fabric, next to nothing to the outside
        Behaviour::Training => Profile {
            utilization: (985, 10),
            tensor_active: (385, 25),
            dram_active: (420, 30),
            memory_used: (910, 10),
            power: (880, 25),
            fabric: 12_000_000,
            external: 60,
        },
        Behaviour::FineTuning => Profile {
            utilization: (940, 40),
            tensor_active: (310, 60),
            dram_active: (400, 60),
            memory_used: (820, 80),
            power: (780, 60),
            fabric: 3_000_000,
            external: 300,
        },
        // bound by memory, follows its users, talks to the outside
        Behaviour::Inference => Profile {
            utilization: (620, 220),
            tensor_active: (120, 70),
            dram_active: (560, 180),
            memory_used: (930, 20),
            power: (470, 170),
            fabric: 150_000,
            external: 4_000,
        },
        Behaviour::Batch => Profile {
            utilization: (880, 90),
            tensor_active: (230, 90),
            dram_active: (480, 120),
            memory_used: (700, 150),
            power: (680, 120),
            fabric: 200_000,
            external: 2_500,
        },
        // shaders, not tensors
        Behaviour::Rendering => Profile {
            utilization: (960, 35),
            tensor_active: (12, 10),
            dram_active: (380, 120),
            memory_used: (550, 200),
            power: (840, 90),
            fabric: 2_000,
            external: 9_000,
        },
        Behaviour::Research => Profile {
            utilization: (420, 400),
            tensor_active: (110, 110),
            dram_active: (200, 190),
            memory_used: (450, 400),
            power: (400, 350),
            fabric: 80_000,
            external: 600,
        },
    }
}

/// One interval of `seconds` on `accelerators`; `load` (0..=1000) is how busy its users keep it,
/// the chance comes from `bits`.
pub(super) fn telemetry(
    behaviour: Behaviour,
    probe: Probe,
    hardware: &Hardware,
    accelerators: f64,
    seconds: u32,
    load: u32,
    bits: [u64; 2],
) -> Telemetry {
    let profile = profile(behaviour);
    let load = if matches!(behaviour, Behaviour::Inference) { load } else { 1000 };
    let ratio = |(centre, spread): (u32, u32), word: usize, lane: u32| {
        f32::from(permille(bits[word], lane, centre * load / 1000, spread)) / 1000.0
    };
    let utilization = ratio(profile.utilization, 0, 0);
    // weights stay in memory when nobody asks
    let (centre, spread) = profile.memory_used;
    let resident = f32::from(permille(bits[0], 3, centre, spread)) / 1000.0;
    match probe {
        Probe::None => Telemetry::default(),
        Probe::Utilization => Telemetry { utilization: Some(utilization), ..Telemetry::default() },
        Probe::Full => {
            let share =
                u32::from(permille(bits[1], 0, profile.power.0 * load / 1000, profile.power.1));
            let range = hardware.peak_watts - hardware.idle_watts;
            let watts = hardware.idle_watts + range * share / 1000;
            let bytes = |kilobytes: u64, lane: u32| {
                let stray = u64::from(permille(bits[1], lane, 500, 60)) * 2;
                let rate = kilobytes * stray * u64::from(load) / 1000;
                #[expect(clippy::cast_precision_loss, reason = "rates stay below 2^53")]
                let bytes = (rate * u64::from(seconds)) as f64 * accelerators;
                bytes
            };
            Telemetry {
                utilization: Some(utilization),
                tensor_active: Some(ratio(profile.tensor_active, 0, 1)),
                dram_active: Some(ratio(profile.dram_active, 0, 2)),
                memory_used: Some(resident),
                power_watts: Some(f32::from(u16::try_from(watts).expect("watts of one board"))),
                fabric_bytes: Some(bytes(profile.fabric, 1)),
                external_bytes: Some(bytes(profile.external, 2)),
            }
        }
    }
}
