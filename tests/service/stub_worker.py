"""A model process whose models take no time to load: all of `Worker` but the cascade."""

import os
import random
import time

from small import verdict

from safelens.cascade import Moderation
from safelens.service.settings import Settings
from safelens.service.supervise import end_with_parent
from safelens.service.worker import Worker


class Lens:
    def moderate_many(self, paths):
        for path in paths:
            time.sleep(random.uniform(0, 0.05))
            yield Moderation(verdict(path), None)

    def close(self):
        pass


class StubWorker(Worker):
    def _load(self, deployment):
        self._loaded = deployment.id
        return Lens()


if __name__ == "__main__":
    end_with_parent()
    StubWorker(Settings(), os.environ.get("SAFELENS_WORKER")).run()
