#pragma once
/* A listening socket from whoever started the daemon: a service manager, or itself before a restart. */

#include "daemon/config.h"

/* Before threads start. *socket = that socket, with its address in place of the configured one, or -1 when there is
 * none. ERR_CONFIG when it is of no use or its address may not be served. */
int listen_inherited(struct config *config, int *socket);
