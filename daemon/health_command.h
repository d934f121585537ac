#pragma once
/* quantd health: for the health check of a container, whose only programs are quantd and quantctl. */

/* argv[0] is "health". Asks the daemon that these options describe; raises when it does not answer as it should. */
int health_command(int argc, char **argv);
