"""`dlq_utils`: the names of dead letter lists."""

from conserver.claims import dead_list as get_ingress_list_dlq_name
from conserver.claims import storage_dead_list as get_storage_dlq_name

__all__ = ["get_ingress_list_dlq_name", "get_storage_dlq_name"]
