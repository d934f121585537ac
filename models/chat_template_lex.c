/* The text of a chat template to tokens, as jinja2's lexer does it with trim_blocks and lstrip_blocks: the newline
 * after {% %} and {# #} goes, so does white space between the start of a line and them, "-" takes all white space on
 * its side, "+" none; one newline at the end of the text goes. */

#include "base/err.h"
#include "models/chat_template_internal.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int lex_refuse(const struct chat_lexer *lexer, const char *what)
{
    return err_raise(ERR_INVALID_CHAT_TEMPLATE, "the chat template, line %u: %s", lexer->line, what);
}

int chat_lex_init(struct chat_lexer *lexer, struct arena *arena, const char *text, size_t size)
{
    char *copy = arena_alloc(arena, size + 1);
    size_t used = 0;

    TRY(arena_check(arena));
    if (!tokenizer_utf8_valid(text, size)) {
        return err_raise(ERR_INVALID_CHAT_TEMPLATE, "the chat template is not UTF-8");
    }
    for (size_t i = 0; i < size; i++) { /* \r\n and \r end lines too */
        if (text[i] == '\r') {
            i += i + 1 < size && text[i + 1] == '\n' ? 1 : 0;
            copy[used++] = '\n';
        } else {
            copy[used++] = text[i];
        }
    }
    used -= used > 0 && copy[used - 1] == '\n' ? 1 : 0;
    *lexer = (struct chat_lexer){
        .arena = arena, .at = copy, .end = copy + used, .line = 1, .line_starting = true, .pending = -1};
    return 0;
}

/* Move to `to`, counting lines. */
static void lex_move(struct chat_lexer *lexer, const char *to)
{
    lexer->line_starting = to > lexer->at ? to[-1] == '\n' : lexer->line_starting;
    for (; lexer->at < to; lexer->at++) {
        lexer->line += *lexer->at == '\n';
    }
}

static const char *skip_space(const char *at, const char *end)
{
    while (at < end) {
        uint32_t codepoint;
        size_t size = tokenizer_utf8_decode(at, &codepoint);
        if (!chat_is_space(codepoint)) {
            break;
        }
        at += size;
    }
    return at;
}

/* The end of a tag: `text` its two characters at `at`, perhaps after a sign. NULL if it is not there. */
static const char *tag_end(const char *at, const char *end, const char *text, bool newline)
{
    char sign = at < end && (*at == '-' || (*at == '+' && newline)) ? *at : 0;

    at += sign != 0 ? 1 : 0;
    if (end - at < 2 || memcmp(at, text, 2) != 0) {
        return NULL;
    }
    at += 2;
    if (sign == '-') {
        return skip_space(at, end);
    }
    return at + (newline && sign == 0 && at < end && *at == '\n' ? 1 : 0);
}

/* The data before a tag, without the white space that the tag takes. */
static struct chat_string lex_data(const struct chat_lexer *lexer, const char *tag)
{
    struct chat_string data = {lexer->at, (size_t)(tag - lexer->at)};
    char sign = lexer->end - tag > 2 ? tag[2] : 0;

    if (sign == '-') {
        return chat_strip(data, NULL, false, true);
    }
    if (sign != '+' && tag[1] != '{') {
        const char *line = tag;
        while (line > lexer->at && line[-1] != '\n') {
            line--;
        }
        if ((line > lexer->at || lexer->line_starting) && skip_space(line, tag) == tag) {
            data.size = (size_t)(line - lexer->at);
        }
    }
    return data;
}

static int skip_comment(struct chat_lexer *lexer)
{
    for (const char *at = lexer->at; lexer->end - at >= 2; at++) {
        const char *after = tag_end(at, lexer->end, "#}", true);
        if (after != NULL) {
            lex_move(lexer, after);
            return 0;
        }
    }
    return lex_refuse(lexer, "a comment does not end");
}

/* Outside of tags: data, or the beginning of a tag. */
static int lex_outside(struct chat_lexer *lexer, struct chat_token *out)
{
    while (lexer->pending < 0 && lexer->at < lexer->end) {
        const char *tag = lexer->at;
        while (tag < lexer->end &&
               !(tag[0] == '{' && lexer->end - tag > 1 && strchr("{%#", tag[1]) != NULL && tag[1] != '\0')) {
            tag++;
        }
        uint32_t line = lexer->line;
        struct chat_string data =
            tag < lexer->end ? lex_data(lexer, tag) : (struct chat_string){lexer->at, (size_t)(tag - lexer->at)};
        lex_move(lexer, tag);
        if (tag < lexer->end) {
            char kind = tag[1], sign = lexer->end - tag > 2 ? tag[2] : 0;
            lex_move(lexer, tag + 2 + (sign == '-' || sign == '+' ? 1 : 0));
            lexer->pending = kind == '{' ? TOKEN_VARIABLE_BEGIN : kind == '%' ? TOKEN_BLOCK_BEGIN : -1;
            lexer->inside = kind != '#';
            lexer->block = kind == '%';
            lexer->balance = 0;
            if (kind == '#') {
                TRY(skip_comment(lexer));
            }
        }
        if (data.size > 0) {
            *out = (struct chat_token){.kind = TOKEN_DATA, .line = line, .text = data};
            return 0;
        }
    }
    *out = (struct chat_token){.kind = lexer->pending >= 0 ? (enum chat_token_kind)lexer->pending : TOKEN_EOF,
                               .line = lexer->line};
    lexer->pending = -1;
    return 0;
}

static int hex_value(const char *digits, const char *end, int count, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < count; i++) {
        if (digits + i >= end || !isxdigit((unsigned char)digits[i])) {
            return -1;
        }
        char c = (char)tolower((unsigned char)digits[i]);
        *out = *out * 16 + (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return *out > 0x10ffff || (*out >= 0xd800 && *out < 0xe000) ? -1 : 0;
}

/* One escape of a string, as Python reads it; *at is after the backslash. */
static int lex_escape(const struct chat_lexer *lexer, const char **at, const char *end, char **to)
{
    static const char letters[] = "ntrabfv\\'\"", values[] = "\n\t\r\a\b\f\v\\'\"";
    char letter = *(*at)++;
    const char *known = letter != '\0' ? strchr(letters, letter) : NULL;
    int digits = letter == 'x' ? 2 : letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    uint32_t code;

    if (letter == '\n') {
        return 0;
    }
    if (known != NULL) {
        *(*to)++ = values[known - letters];
        return 0;
    }
    if (digits == 0 && letter != 'N' && !isdigit((unsigned char)letter)) {
        *(*to)++ = '\\'; /* no escape: both stay */
        *(*to)++ = letter;
        return 0;
    }
    if (digits == 0 || hex_value(*at, end, digits, &code) != 0) {
        return lex_refuse(lexer, "a string has an escape that is wrong or not supported");
    }
    *at += digits;
    *to += tokenizer_utf8_encode(code, *to);
    return 0;
}

static int lex_string(struct chat_lexer *lexer, struct chat_token *out)
{
    char quote = *lexer->at;
    const char *from = lexer->at + 1, *close = from;

    while (close < lexer->end && *close != quote) {
        close += *close == '\\' && close + 1 < lexer->end ? 2 : 1;
    }
    if (close >= lexer->end) {
        return lex_refuse(lexer, "a string does not end");
    }
    char *text = arena_alloc(lexer->arena, (size_t)(close - from) + 1), *to = text;
    TRY(arena_check(lexer->arena));
    while (from < close) {
        if (*from != '\\') {
            *to++ = *from++;
            continue;
        }
        from++;
        TRY(lex_escape(lexer, &from, close, &to));
    }
    out->kind = TOKEN_STRING;
    out->text = (struct chat_string){text, (size_t)(to - text)};
    lex_move(lexer, close + 1);
    return 0;
}

static int lex_number(struct chat_lexer *lexer, struct chat_token *out)
{
    const char *p = lexer->at, *end = lexer->end;
    char literal[40];
    bool fraction = false;

    while (p < end && isdigit((unsigned char)*p)) {
        p++;
    }
    if (end - p > 1 && *p == '.' && isdigit((unsigned char)p[1]) && !(lexer->at[-1] == '.')) {
        fraction = true;
        for (p++; p < end && isdigit((unsigned char)*p); p++) {
        }
    }
    if (p < end && (isalpha((unsigned char)*p) || *p == '_')) {
        return lex_refuse(lexer, "a number is written in a way that is not supported");
    }
    size_t size = (size_t)(p - lexer->at);
    if (size > 18) {
        return lex_refuse(lexer, "a number of more than 18 characters is not supported");
    }
    memcpy(literal, lexer->at, size);
    literal[size] = '\0';
    out->kind = fraction ? TOKEN_FLOAT : TOKEN_INTEGER;
    out->integer = fraction ? 0 : strtoll(literal, NULL, 10);
    out->number = fraction ? strtod(literal, NULL) : 0;
    lex_move(lexer, p);
    return 0;
}

static int lex_operator(struct chat_lexer *lexer, struct chat_token *out)
{
    static const char *const two[] = {"==", "!=", ">=", "<=", "//", "**"};
    char c = *lexer->at;

    out->kind = TOKEN_OPERATOR;
    for (size_t i = 0; i < sizeof(two) / sizeof(two[0]); i++) {
        if (lexer->end - lexer->at > 1 && memcmp(lexer->at, two[i], 2) == 0) {
            out->symbol = CHAT_TWO(two[i][0], two[i][1]);
            lex_move(lexer, lexer->at + 2);
            return 0;
        }
    }
    if (c == '\0' || strchr("+-/*%~[](){}><=.:|,", c) == NULL) {
        return lex_refuse(lexer, "a tag holds a character that no expression has");
    }
    lexer->balance += strchr("[({", c) != NULL ? 1 : strchr("])}", c) != NULL ? -1 : 0;
    out->symbol = (unsigned char)c;
    lex_move(lexer, lexer->at + 1);
    return lexer->balance < 0 ? lex_refuse(lexer, "a bracket closes that was not open") : 0;
}

static int lex_inside(struct chat_lexer *lexer, struct chat_token *out)
{
    lex_move(lexer, skip_space(lexer->at, lexer->end));
    *out = (struct chat_token){.kind = TOKEN_EOF, .line = lexer->line};
    if (lexer->at == lexer->end) {
        return lex_refuse(lexer, "a tag does not end");
    }
    const char *after =
        lexer->balance == 0 ? tag_end(lexer->at, lexer->end, lexer->block ? "%}" : "}}", lexer->block) : NULL;
    if (after != NULL) {
        out->kind = lexer->block ? TOKEN_BLOCK_END : TOKEN_VARIABLE_END;
        lexer->inside = false;
        lex_move(lexer, after);
        return 0;
    }
    unsigned char c = (unsigned char)*lexer->at;
    if (isdigit(c)) {
        return lex_number(lexer, out);
    }
    if (c == '"' || c == '\'') {
        return lex_string(lexer, out);
    }
    const char *p = lexer->at;
    while (p < lexer->end && (isalnum((unsigned char)*p) || *p == '_')) {
        p++;
    }
    if (p == lexer->at) {
        return lex_operator(lexer, out);
    }
    out->kind = TOKEN_NAME;
    out->text = (struct chat_string){lexer->at, (size_t)(p - lexer->at)};
    lex_move(lexer, p);
    return 0;
}

int chat_lex_next(struct chat_lexer *lexer, struct chat_token *out)
{
    return lexer->inside && lexer->pending < 0 ? lex_inside(lexer, out) : lex_outside(lexer, out);
}
