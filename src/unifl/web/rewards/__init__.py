"""The reward service: a scorer behind HTTP, for clients on other machines."""

from unifl.web.rewards.app import make_app as make_app
from unifl.web.rewards.batching import Batcher as Batcher
from unifl.web.rewards.serve import RewardServer as RewardServer
from unifl.web.rewards.serve import ServiceSettings as ServiceSettings
from unifl.web.rewards.serve import open_socket as open_socket
