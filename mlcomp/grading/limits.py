"""How much a submission may use."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Seconds are wall-clock time unless they say otherwise; sizes are bytes."""

    start: float = 60.0  # until the process answers
    cell: float = 20.0  # a cell of the notebook
    call: float = 10.0  # one call of a student's function by a check
    grace: float = 3.0  # between the alarm inside the process and its end
    submission: float = 240.0  # everything together
    cpu: int = 180  # CPU seconds of one process
    memory: int = 4096 * MIB  # address space of one process, and resident memory of all together
    processes: int = 64
    scratch: int = 256 * MIB  # all files together
    output: int = 8 * MIB  # printed altogether; more ends the process
    shown: int = 20_000  # printed characters of a cell that the feedback shows
    notebook: int = 20 * MIB  # the submitted file
    cells: int = 1000  # of the submitted notebook
    text: int = 100_000  # characters of a cell; ten times that for all cells together
    message: int = 2000  # characters of an error or of what a check says
    rendering: float = 10.0  # to make the written answers of a submission into a page
