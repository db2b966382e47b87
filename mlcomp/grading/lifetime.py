"""A process that ends with the one that started it, also when that one is killed."""

import os
import threading
import time


def end_with(parent: int) -> None:
    """Watch the parent process from now on, and end this one within a second of it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
