"""A process and its descendants."""

import psutil


def family(pid):
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
