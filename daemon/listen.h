#pragma once
/* A listening socket inherited from the process that started the daemon: a service manager, or the daemon itself
 * before a restart. */

#include "daemon/config.h"

/* Call before threads start. Sets *socket to that socket and replaces the configured address by its own, or sets -1
 * when there is none. ERR_CONFIG when it cannot be used or this configuration does not allow its address. */
int listen_inherited(struct config *config, int *socket);
