/* The objects of the API, member by member: artifacts and what their verification shows. objects.c says more. */

#include "api/schema_rows.h"

static const struct schema_row artifact_file_rows[] = {MEMBER(path, STRING), MEMBER(bytes, INT), MEMBER(sha256, DIGEST),
                                                       END};
static const struct schema schema_artifact_file = {.name = "ArtifactFile", .rows = artifact_file_rows};

static const struct schema_row artifact_signature_rows[] = {
    MEMBER(path, STRING, HELP("The bundle among the files: OpenSSF Model Signing v1.0.")), MEMBER(algorithm, STRING),
    MEMBER(key_hint, DIGEST, HELP("SHA-256 of the public key's PEM.")), MEMBER(signed_at, TIME), END};
static const struct schema schema_artifact_signature = {.name = "ArtifactSignature", .rows = artifact_signature_rows};

static const struct schema_row artifact_rows[] = {
    ID(id, "art"),
    CONST(object, "artifact"),
    ID(job_id, "job"),
    ID(model_id, "mdl"),
    MEMBER(name, STRING),
    MEMBER(method, STRING),
    MEMBER(format, STRING),
    MEMBER(architecture, STRING, OPTIONAL, HELP("Of the model; so are the next two. Older artifacts lack them.")),
    MEMBER(parameters, INT, OPTIONAL),
    MEMBER(dtype, STRING, OPTIONAL),
    LIST(files, schema_artifact_file),
    MEMBER(bytes, INT),
    MEMBER(manifest_sha256, DIGEST, NULLABLE),
    OBJECT(signature, schema_artifact_signature, NULLABLE),
    MEMBER(bits_per_weight, NUMBER),
    MEMBER(compression_ratio, NUMBER),
    MEMBER(created_at, TIME),
    END};
const struct schema schema_artifact = {.name = "Artifact", .help = "A published result.", .rows = artifact_rows};
PAGE(schema_artifact_list, "ArtifactList", schema_artifact, "art");

static const char *const file_states[] = {"intact", "changed", "missing", NULL};
static const struct schema_row verified_rows[] = {
    MEMBER(path, STRING),
    MEMBER(state, ENUM, .choices = file_states),
    MEMBER(bytes, INT, HELP("As the manifest has it; so is the next one.")),
    MEMBER(sha256, DIGEST),
    MEMBER(actual_bytes, INT, NULLABLE),
    MEMBER(actual_sha256, DIGEST, NULLABLE),
    END};
static const struct schema schema_verified_file = {.name = "VerifiedFile", .rows = verified_rows};
static const char *const signature_states[] = {"valid", "invalid", "other_key", NULL};
static const struct schema_row verified_signature_rows[] = {
    MEMBER(state, ENUM, .choices = signature_states,
           HELP("other_key: the daemon has not the key that it was made with, and cannot tell.")),
    MEMBER(key_hint, DIGEST), MEMBER(detail, STRING, NULLABLE), END};
static const struct schema schema_verified_signature = {.name = "VerifiedSignature", .rows = verified_signature_rows};
static const struct schema_row verification_rows[] = {
    CONST(object, "artifact.verification"),
    ID(artifact_id, "art"),
    MEMBER(intact, BOOL, HELP("Every file is.")),
    MEMBER(bytes, INT, HELP("That were hashed.")),
    LIST(files, schema_verified_file),
    OBJECT(signature, schema_verified_signature, NULLABLE, HELP("Null: it is not signed.")),
    END};
const struct schema schema_verification = {
    .name = "Verification", .help = "What hashing an artifact's files again has shown.", .rows = verification_rows};
