"""What goes wrong: how each fault begins and ends. The upstreams are numbered from 1; the first is the one that suffers.

In groups, because a table of thirteen columns is none: the process dies or hangs, the network betrays it, the
application fails while its process looks well, and the world around it moves.
"""

import asyncio
import signal


class Fault:
    key: str
    title: str
    group: str
    #: The upstreams that suffer.
    bad = (1,)
    #: Longer than the others, when what is to be seen takes longer.
    factor = 1.0
    #: What the network must be able to do.
    needs_cut = False
    needs_names = False
    #: A host that is up half of the time may be asked; only harm counts.
    serves_meanwhile = False

    async def prepare(self, lab):
        """What takes a moment and changes nothing yet."""

    async def begin(self, lab):
        raise NotImplementedError

    async def end(self, lab):
        raise NotImplementedError


class Told(Fault):
    """The upstream is told to misbehave."""

    async def begin(self, lab):
        await lab.tell(1, self.told if hasattr(self, "told") else self.key)

    async def end(self, lab):
        await lab.tell(1, "none")


class Kill(Fault):
    key, title, group = "kill", "kill -9, restarted at the end", "process"

    async def begin(self, lab):
        for number in self.bad:
            lab.upstreams[number].process.signal(signal.SIGKILL)
        for number in self.bad:
            lab.upstreams[number].process.child.wait(5)

    async def end(self, lab):
        for number in self.bad:
            lab.start_upstream(number)
        for number in self.bad:
            await lab.listening(number)


class Two(Kill):
    key, title = "two", "two of three killed"
    bad = (1, 2)


class Stop(Fault):
    key, title, group = "stop", "frozen (SIGSTOP, SIGCONT)", "process"

    async def begin(self, lab):
        lab.upstreams[1].process.signal(signal.SIGSTOP)

    async def end(self, lab):
        lab.upstreams[1].process.signal(signal.SIGCONT)


class Refuse(Told):
    key, title, group = "refuse", "port closed, process alive", "process"


class Flap(Fault):
    key, title, group = "flap", "1 s up, 1 s down", "process"
    serves_meanwhile = True

    async def begin(self, lab):
        self.flapping = asyncio.create_task(self.flaps(lab))

    async def flaps(self, lab):
        while True:
            await lab.tell(1, "refuse")
            await asyncio.sleep(1)
            await lab.tell(1, "none")
            await asyncio.sleep(1)

    async def end(self, lab):
        self.flapping.cancel()
        await lab.tell(1, "none")


class Blackhole(Fault):
    key, title, group = "blackhole", "packets vanish", "network"
    needs_cut = True

    async def begin(self, lab):
        lab.network.cut(1)

    async def end(self, lab):
        lab.network.mend(1)


class Stall(Told):
    key, title, group = "stall", "accepts, never answers", "network"


class Reset(Told):
    key, title, group = "reset", "reset in mid-body", "network"


class Drip(Told):
    key, title, group = "drip", "body drips for 1.6 s", "network"


class Slow(Told):
    key, title, group = "slow", "800 ms slow", "application"


class Errors(Told):
    key, title, group = "errors", "30 % of answers are 500", "application"


class Gray(Told):
    key, title, group = "gray", "gray: all answers 500, checks green", "application"
    factor = 2.0


class Gray503(Told):
    key, title, group = "gray503", "gray: all answers 503, checks green", "application"
    factor = 2.0


class Moved(Fault):
    """The third upstream moves to a fourth address, and the name follows. The new one is there first, the old one
    ends as soon as the name has changed: callers that hold on to addresses lose."""

    key, title, group = "dns", "moves to another address, the name follows", "discovery"
    bad = (3,)
    needs_names = True

    async def prepare(self, lab):
        lab.start_upstream(4)
        await lab.listening(4)

    async def begin(self, lab):
        lab.names.addresses = [lab.network.addresses[number - 1] for number in (1, 2, 4)]
        lab.upstreams[3].process.signal(signal.SIGTERM)

    async def end(self, lab):
        pass


ALL = {
    kind.key: kind
    for kind in (Kill, Stop, Refuse, Flap, Two, Blackhole, Stall, Reset, Drip, Slow, Errors, Gray, Gray503, Moved)
}
GROUPS = {
    "process": "The process dies or hangs",
    "network": "The network or the protocol betrays it",
    "application": "The application fails, health checks stay green",
    "discovery": "The world moves",
}
