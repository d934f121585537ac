/* Chat templates: small ones with their text, what is refused and by which name, and that neither a hostile template
 * nor hostile messages cost more than they may. Equality with jinja2 is tests/interop's matter. */

#include "models/chat.h"
#include "models/chat_template.h"
#include "models/chat_template_internal.h"
#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const variables = "{\"s\": \"Hi\", \"n\": 3, \"l\": [3, 1, 2], \"d\": {\"b\": 1, \"a\": [null, "
                                     "true, 1.5]}, \"u\": \" \\u00e9\\u65e5 \"}";

/* The text, or the error. */
static const char *render(const char *template, int *rc)
{
    static char shown[4096];
    struct chat_template *chat = NULL;
    json_t *values = json_loads(variables, 0, NULL);
    char *text = NULL;
    size_t size = 0;

    *rc = chat_template_new(template, strlen(template), &chat);
    *rc = *rc != 0 ? *rc : chat_template_render(chat, values, NULL, &text, &size);
    snprintf(shown, sizeof(shown), "%s", *rc != 0 ? err_last()->message : text);
    ck_assert(*rc != 0 || size == strlen(text));
    free(text);
    json_decref(values);
    chat_template_free(chat);
    return shown;
}

START_TEST(renders)
{
    static const struct {
        const char *template, *text;
    } rows[] = {
        {"", ""},
        {"a\n{% if n %}\nb\n{% endif %}\nc\n", "a\nb\nc"},
        {"  {% if n -%}  x  {%- endif %}  \ny", "x  \ny"},
        {"{# no #}{{ s }}{{- ' ' -}} {{ s }}", "Hi Hi"},
        {"{{ (1 + 2 * 3) ~ '|' ~ -7 // 2 ~ '|' ~ 7 % -3 ~ '|' ~ 1 / 4 }}", "7|-4|-2|0.25"},
        {"{{ d }} {{ l }} {{ none }} {{ (1,) }} {{ missing }}",
         "{'b': 1, 'a': [None, True, 1.5]} [3, 1, 2] None (1,) "},
        {"{{ d|tojson }}{{ [1]|tojson(indent=2) }}", "{\"b\": 1, \"a\": [null, true, 1.5]}[\n  1\n]"},
        {"{% for k, v in d.items() %}{{ loop.index }}{{ k }}{{ ',' if not loop.last }}{% endfor %}", "1b,2a"},
        {"{% for i in l if i > 1 %}{{ i }}{% else %}none{% endfor %}{% for i in [] %}{% else %}none{% endfor %}",
         "32none"},
        {"{% set x = 0 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}", "0"},
        {"{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "6"},
        {"{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=5)|length }}", "122"},
        {"{% set x %}in {{ s }}{% endset %}{{ x|upper }}", "IN HI"},
        {"{{ l[::-1] }}{{ l[1:] }}{{ s[-1] }}{{ u[1:3] }}{{ u|trim|length }}", "[2, 1, 3][1, 2]i\xc3\xa9\xe6\x97\xa5"
                                                                               "2"},
        {"{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ s.startswith('H') }}{{ s.replace('i', 'o') }}", "bxTrueHo"},
        {"{{ l|sort|join('-') }}{{ l|select('gt', 1)|list }}{{ l|map('string')|join }}", "1-2-3[3, 2]312"},
        {"{{ s is string and d is mapping and x is not defined and n is odd }}", "True"},
        {"{{ 'i' in s }}{{ 3 not in l }}{{ 1 < 2 < 3 }}{{ s == 'Hi' and 1 == 1.0 }}", "TrueFalseTrueTrue"},
        {"{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if loop.last %}{% break %}{% endif %}{% "
         "endfor %}",
         "32"},
        {"{% generation %}{{ s }}{% endgeneration %}", "Hi"},
        {"{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"},
        {"{{ 'it\\'s \\u00e9' 'x' }}{{ '}}' }}", "it's \xc3\xa9x}}"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int rc;
        const char *text = render(rows[i].template, &rc);
        ck_assert_msg(rc == 0 && strcmp(text, rows[i].text) == 0, "%s: %d %s", rows[i].template, rc, text);
    }
}
END_TEST

START_TEST(refuses)
{
    static const struct {
        const char *template;
        int code;
        const char *reason;
    } rows[] = {
        {"\n{% include 'x' %}", ERR_INVALID_CHAT_TEMPLATE, "line 2: the tag \"include\" is not supported"},
        {"{{ s|wordwrap }}", ERR_INVALID_CHAT_TEMPLATE, "the filter \"wordwrap\""},
        {"{{ s is escaped }}", ERR_INVALID_CHAT_TEMPLATE, "the test \"escaped\""},
        {"{% if s %}", ERR_INVALID_CHAT_TEMPLATE, "expected elif"},
        {"{{ s", ERR_INVALID_CHAT_TEMPLATE, "a tag does not end"},
        {"{# s", ERR_INVALID_CHAT_TEMPLATE, "a comment does not end"},
        {"{{ 's }}", ERR_INVALID_CHAT_TEMPLATE, "a string does not end"},
        {"{{ s) }}", ERR_INVALID_CHAT_TEMPLATE, "closes that was not open"},
        {"{{ 0x10 }}", ERR_INVALID_CHAT_TEMPLATE, "a number"},
        {"{{ f(*l) }}", ERR_INVALID_CHAT_TEMPLATE, "arguments from a list"},
        {"{% break %}", ERR_INVALID_CHAT_TEMPLATE, "outside of a loop"},
        {"\xff", ERR_INVALID_CHAT_TEMPLATE, "not UTF-8"},
        {"{{ raise_exception('only two') }}", ERR_INVALID_PARAMETER, "it refuses the messages: only two"},
        {"{{ x.y }}", ERR_INVALID_PARAMETER, "\"x\" is not defined"},
        {"\n\n{{ s + 1 }}", ERR_INVALID_PARAMETER, "line 3: + between values of the types str and int"},
        {"{{ d.update({}) }}", ERR_INVALID_PARAMETER, "the method \"update\" of a dict is not supported"},
        {"{{ '%s' % 1 }}", ERR_INVALID_PARAMETER, "% of a str"},
        {"{{ '\xc3\x9f'|upper }}", ERR_INVALID_PARAMETER, "upper case of U+00DF"},
        {"{{ d.items() }}", ERR_INVALID_PARAMETER, "the text of a view"},
        {"{% set x = l|map('string') %}{{ x|join }}{{ x|join }}", ERR_INVALID_PARAMETER, "going twice"},
        {"{{ strftime_now('%s') }}", ERR_INVALID_PARAMETER, "strftime_now with %s"},
        {"{{ 9223372036854775 * 9223372036854775 }}", ERR_INVALID_PARAMETER, "beyond 64 bits"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int rc;
        const char *text = render(rows[i].template, &rc);
        ck_assert_msg(rc == rows[i].code && strstr(text, rows[i].reason) != NULL, "%s: %d %s", rows[i].template, rc,
                      text);
    }
}
END_TEST

/* Each ends soon, whatever it would cost without limits. */
START_TEST(costs_are_bounded)
{
    static const char *const rows[] = {
        "{% for i in range(2000000000) %}{% endfor %}",
        "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 2000000000 }}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% for i in range(40000) %}{{ 'x' * 1000 }}{% endfor %}",
    };
    char *deep = malloc(40000);
    int rc;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        clock_t start = clock();
        const char *text = render(rows[i], &rc);
        ck_assert_msg(rc == ERR_PAYLOAD_TOO_LARGE && strstr(text, "than a text is given") != NULL, "%s: %d %s", rows[i],
                      rc, text);
        ck_assert_msg(clock() - start < 60 * CLOCKS_PER_SEC, "%s takes too long", rows[i]);
    }
    ck_assert_ptr_nonnull(deep);
    memset(deep, '(', 20000);
    memcpy(deep, "{{", 2);
    deep[20000] = '\0';
    (void)render(deep, &rc);
    ck_assert_int_eq(rc, ERR_INVALID_CHAT_TEMPLATE);
    strcpy(deep, "{{ 1");
    for (int i = 0; i < 9000; i++) {
        strcat(deep + i * 2, "+1");
    }
    strcat(deep, "}}");
    (void)render(deep, &rc);
    ck_assert_int_eq(rc, ERR_PAYLOAD_TOO_LARGE);
    free(deep);
}
END_TEST

static const char *rendered(const char *template, const char *messages, const char *more, int *rc)
{
    static char shown[1000];
    struct chat *chat = NULL;
    json_t *tokens = json_loads("{\"bos_token\": {\"content\": \"<s>\"}, \"eos_token\": \"</s>\"}", 0, NULL);
    json_t *list = json_loads(messages, 0, NULL), *kwargs = json_loads(more, 0, NULL);
    const struct chat_record record = {.messages = list, .variables = kwargs};
    char *text = NULL;
    size_t size = 0;

    ck_assert_rc_ok(chat_new(template, template != NULL ? strlen(template) : 0, tokens, &chat));
    *rc = chat_render(chat, &record, &text, &size);
    snprintf(shown, sizeof(shown), "%s", *rc != 0 ? err_last()->message : text);
    free(text);
    json_decref(tokens);
    json_decref(list);
    json_decref(kwargs);
    chat_free(chat);
    return shown;
}

START_TEST(messages_are_prepared)
{
    int rc;

    ck_assert_str_eq(rendered("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ tools }}{{ x }}",
                              "[{\"content\": \"a\"}]", "{\"x\": 1}", &rc),
                     "<s>a</s>None1");
    ck_assert_str_eq(rendered("{{ messages[0] }}", "[{\"content\": null, \"role\": \"user\"}]", "{}", &rc),
                     "{'role': 'user'}");
    ck_assert_str_eq(rendered("{{ messages[0] }}", "[{\"role\": \"a\", \"reasoning\": \"r\"}]", "{}", &rc),
                     "{'thinking': 'r', 'role': 'a', 'reasoning': 'r', 'reasoning_content': 'r'}");
    (void)rendered("x", "[1]", "{}", &rc);
    ck_assert_int_eq(rc, ERR_INVALID_PARAMETER);
    ck_assert_ptr_nonnull(strstr(rendered(NULL, "[]", "{}", &rc), "no chat template"));
    ck_assert_int_eq(rc, ERR_INVALID_CHAT_TEMPLATE);
    ck_assert_ptr_nonnull(strstr(rendered("{% extends 'x' %}", "[]", "{}", &rc), "the tag \"extends\""));
    ck_assert_int_eq(rc, ERR_INVALID_CHAT_TEMPLATE);
}
END_TEST

UNIT_MAIN("chat_template", renders, refuses, costs_are_bounded, messages_are_prepared)
