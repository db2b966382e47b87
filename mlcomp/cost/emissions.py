r"""What training emits: hours of processors, times their power, times the carbon of a kilowatt-hour.

Notation: energy [kWh] = hours · watts / 1000 · PUE. PUE (power usage effectiveness) is what the data centre draws for
each watt of its processors. Emissions [kg CO₂eq] = energy · intensity [kg CO₂eq/kWh].
Source: Touvron et al. 2023, arXiv:2302.13971, section 6 (the formula, PUE 1.1, 0.385 kg/kWh, the average of the
United States); the same 2023, arXiv:2307.09288, table 2 (the lecture's table).   Syllabus: 4.01
"""

from dataclasses import dataclass

from mlcomp.checks import check_interval

PUE, US_INTENSITY = 1.1, 0.385


@dataclass(frozen=True)
class TrainingRun:
    """A row of a published table: processor hours in all, the power of one in watts, tonnes of CO₂ equivalents."""

    hours: int
    watts: int
    tonnes: float

    @property
    def intensity(self) -> float:
        """Kilograms for each kilowatt-hour of the processors that the row implies."""
        return 1000 * self.tonnes / energy_kwh(self.hours, self.watts)


# Quoted. The table's total is 3 311 616 hours and 539.00 tonnes.
LLAMA_2: dict[str, TrainingRun] = {
    "7B": TrainingRun(184_320, 400, 31.22),
    "13B": TrainingRun(368_640, 400, 62.44),
    "34B": TrainingRun(1_038_336, 350, 153.90),
    "70B": TrainingRun(1_720_320, 400, 291.42),
}


def energy_kwh(hours: float | int, watts: float | int, *, pue: float | int = 1.0) -> float:
    """Return the energy of ``hours`` processor hours at ``watts`` each, [kWh].

    Raises:
        ValueError: hours or watts are negative, a PUE below 1.
    """
    check_interval("hours", hours, "[0, 1e15]")
    check_interval("watts", watts, "[0, 1e15]")
    check_interval("pue", pue, "[1, 1e3]")
    return hours * watts / 1000 * pue


def emissions_kg(
    hours: float | int, watts: float | int, *, pue: float | int = PUE, intensity: float | int = US_INTENSITY
) -> float:
    """Return the emissions of ``hours`` processor hours at ``watts`` each, [kg CO₂eq].

    Args:
        hours: of all processors together.
        watts: of one.
        pue: what the data centre draws for each watt of a processor.
        intensity: of the electricity, [kg CO₂eq/kWh]: the mean of a country, or better, of the grid and the hours.
    Raises:
        ValueError: a negative number, a PUE below 1.
    Guarantee: with the two constants of the source, every row of its table of Llama 2, cut after two decimals.
    """
    check_interval("intensity", intensity, "[0, 1e3]")
    return energy_kwh(hours, watts, pue=pue) * intensity
