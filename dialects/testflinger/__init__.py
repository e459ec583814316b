"""Testflinger's server API over the tracker's queue, for both generations of its clients and agents.

api        the calls: decode, one function of a transaction, answer      files      artifacts and attachments
domain     jobs, results, output, agents
clients    clients, keys, tokens, permissions, secrets                   pages      the manager pages
queues     queues, images, waiting times                                 events     what happens to the queues' jobs
"""

from dialects.testflinger.api import prune, routes
from dialects.testflinger.domain import needed_workers, project_gone
from dialects.testflinger.events import attachments, catch_up, check_project, check_retry, client_of, job_event
from dialects.testflinger.pages import PAGES, links

__all__ = [
    "PAGES",
    "attachments",
    "catch_up",
    "check_project",
    "check_retry",
    "client_of",
    "job_event",
    "links",
    "needed_workers",
    "project_gone",
    "prune",
    "routes",
]
