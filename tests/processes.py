"""Processes of this machine, for tests that kill them."""

from pathlib import Path


def processes(of, title):
    """Ids of another process's descendants, by what they call themselves."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                titles[int(entry.name)] = (entry / "cmdline").read_text().strip("\0")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])

    def below(pid):
        while pid in parents and pid != of:
            pid = parents[pid]
        return pid == of

    return [pid for pid, name in titles.items() if title in name and below(pid)]
