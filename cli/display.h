#pragma once
/* What is shown of a running job, made from its events. A display knows neither HTTP nor where its text goes. */

#include "base/cleanup.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct display;

/* live: bars that are drawn again in place (a terminal of so many columns), or plain lines. Writes to out. NULL without
 * memory. */
struct display *display_new(FILE *out, bool live, int columns, bool unicode);
void display_free(struct display *display);
CLEANUP_FREE(display, struct display, display_free)
/* The terminal has so many columns now. */
void display_resize(struct display *display, int columns);
/* One event: {"type", "created_at", "data"}. */
void display_event(struct display *display, const json_t *event);
/* A remark of quantctl's own, such as a lost connection. */
void display_note(struct display *display, const char *text);
/* Draw again (live): time has passed. */
void display_tick(struct display *display);
/* Leave what is drawn where it is; what is printed next begins a line. */
void display_end(struct display *display);
