//! The few accelerators and instance types that the simulated cloud rents out.
//!
//! Peaks repeat the shipped catalogue's; a test compares the two.

use crate::detector::measure::Peaks;

/// One thing to rent: an accelerator by its catalogue key, or an instance type with several.
#[derive(Debug, PartialEq)]
pub struct Hardware {
    /// Empty when it is metered by instance type.
    pub accelerator: &'static str,
    /// Empty when it is metered by accelerator.
    pub instance_type: &'static str,
    /// Accelerators for each unit of quantity.
    pub count: f64,
    pub peaks: Peaks,
    pub idle_watts: u32,
    pub peak_watts: u32,
}

const fn accelerator(
    key: &'static str,
    dense16: f64,
    dense_max: f64,
    idle_watts: u32,
    peak_watts: u32,
) -> Hardware {
    Hardware {
        accelerator: key,
        instance_type: "",
        count: 1.0,
        peaks: Peaks { dense16, dense_max, is_cpu: false },
        idle_watts,
        peak_watts,
    }
}

pub const H100: &Hardware = &accelerator("nvidia-h100-sxm", 989.4e12, 1978.9e12, 75, 700);
pub const H200: &Hardware = &accelerator("nvidia-h200-sxm", 989.4e12, 1978.9e12, 80, 700);
pub const A100: &Hardware = &accelerator("nvidia-a100-80-sxm", 312e12, 624e12, 60, 400);
pub const L40S: &Hardware = &accelerator("nvidia-l40s", 362e12, 733e12, 35, 350);
pub const L4: &Hardware = &accelerator("nvidia-l4", 121e12, 242.5e12, 15, 72);
pub const TPU_V5P: &Hardware = &accelerator("google-tpu-v5p", 459e12, 918e12, 100, 540);

/// A node metered as one instance.
pub const P5: &Hardware = &Hardware {
    accelerator: "",
    instance_type: "p5.48xlarge",
    count: 8.0,
    peaks: H100.peaks,
    idle_watts: H100.idle_watts,
    peak_watts: H100.peak_watts,
};

/// One hardware thread of a plain machine.
pub const VCPU: &Hardware = &Hardware {
    accelerator: "vcpu",
    instance_type: "",
    count: 1.0,
    peaks: Peaks { dense16: 0.1e12, dense_max: 0.1e12, is_cpu: true },
    idle_watts: 1,
    peak_watts: 6,
};

/// Everything that may occur.
pub const ALL: [&Hardware; 8] = [H100, H200, A100, L40S, L4, TPU_V5P, P5, VCPU];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::catalogue::Catalogue;

    #[test]
    fn the_shipped_catalogue_knows_all_of_it_and_agrees() {
        let catalogue = Catalogue::shipped();
        for hardware in ALL {
            let resolved = catalogue.resolve(hardware.accelerator, hardware.instance_type);
            assert!(!resolved.unknown, "{hardware:?}");
            assert_eq!((resolved.count, resolved.peaks), (hardware.count, hardware.peaks));
        }
    }
}
