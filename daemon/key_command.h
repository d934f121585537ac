#pragma once
/* quantd key create|list|revoke: API keys of a data directory, whether or not a daemon runs on it. */

/* argv[0] is "key". Prints to standard output; 0 or a raised code. */
int key_command(int argc, char **argv);
