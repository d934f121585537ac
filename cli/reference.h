#pragma once
/* The name of an image: REGISTRY/REPOSITORY[:TAG], as the OCI distribution specification has its parts. */

#define REFERENCE_REGISTRY_MAX 255
#define REFERENCE_REPOSITORY_MAX 255
#define REFERENCE_TAG_MAX 128

struct reference {
    char registry[REFERENCE_REGISTRY_MAX + 1]; /* as it was written: "docker.io", "localhost:5000" */
    char server[REFERENCE_REGISTRY_MAX + 1];   /* that speaks for it: "registry-1.docker.io"; HOST or HOST:PORT */
    char host[REFERENCE_REGISTRY_MAX + 1];     /* of server, without its port */
    char repository[REFERENCE_REPOSITORY_MAX + 1];
    char tag[REFERENCE_TAG_MAX + 1]; /* "latest" where none was given */
};

/* ERR_CONFIG with the reason. Names of Docker Hub are completed as Docker does. */
int reference_parse(const char *text, struct reference *out);
