package main

// notExpected is the remedy of what the operator never meets: it does not ask for it.
const notExpected = "Not expected: the operator asks for nothing that is refused so. Report it, with the operator's log."

// remedies say what to do, by reason.
var remedies = map[string]string{ //nolint:gosec // no credentials
	// Keyconvoy's own.
	"Succeeded":           "Nothing.",
	"PendingImport":       "Wrap the material and put it into `spec.material`: [Bring your own key](bring-your-own-key.md). After expiry or deletion of the material it must be the same material.",
	"KeyStoreNotFound":    "Make the key store, or delete the object and name another one in `keyStoreRef`.",
	"KeyStoreNotReady":    "Look at the key store's own conditions.",
	"KeyNotReady":         "Look at the conditions of the ImportedKey or DataKey that is named. A recipient that is an ImportedKey publishes no public key once its token has ended: ask for another with the annotation `keyconvoy.io/renew-import-parameters`.",
	"SourceNotFound":      "Make the Secret or ConfigMap, with the entry that the message names.",
	"TargetNotOwned":      "Remove the Secret (or, in a ClusterExportedDataKey's namespace, the ExportedDataKey) that has the name, or make the object anew with another `target.name`. It is never overwritten.",
	"KeyVersionTaken":     "Delete the object that is too many. Deleting one that only asked to adopt the key does nothing to the key.",
	"NamespacesFailed":    "`status.failures` names the first ten namespaces with their reasons; look at the ExportedDataKeys there.",
	"NamespacesPending":   "Wait; if it lasts, look at the ExportedDataKeys that are not Ready.",
	"ModuleMisconfigured": "Compare `spec.pkcs11` with the operator's `--pkcs11-module` and with the token: the message says what does not fit. For the software store: restore the Secret with the root key. It is tried again every minute.",
	"PINRefused":          "Put the right PIN into the Secret. The refused one is not tried again. A locked PIN is unlocked with the token's own tools.",
	"APIServer":           "Look at the operator's log: missing permissions and quotas are there. It is tried again, later and later, up to five minutes apart.",

	// Error codes.
	"InvalidParameter":            "The message names the field and what is wrong with it: correct it. A blob that does not open was damaged, or made under another key or EncryptionContext.",
	"MissingParameter":            "Give the parameter that the message names.",
	"InvalidKeyMaterial":          "Wrap again, with the algorithm and the length that the key asks for, and the same material as the first time: other material is never accepted by the same key. From an adopted key: its fingerprint is not the one in `adopt.materialFingerprint`.",
	"InvalidImportToken":          "Take the public key and the token from `status.importParameters` together, and wrap again.",
	"ExpiredImportToken":          "Ask for new parameters (annotation `keyconvoy.io/renew-import-parameters`), and wrap again. A token lasts 24 hours.",
	"UnsupportedOrigin":           notExpected,
	"UnsupportedOperation":        "The module cannot do it, or only outside itself where `custody: ModuleOnly` forbids that, or PKCS#1 v1.5 is not allowed. `status.capabilities` of the key store says what it can: choose from it.",
	"ForbiddenNoPermission":       "Ask the key's owner (`spec.exportPolicy`: namespace, recipient, algorithm) or the administrator of the ClusterKeyStore (`spec.allowedNamespaces`); the message says which. A Secret that was there is deleted. In `status.failures`: the API server refused to have the ExportedDataKey made. [Roles and consent](roles-and-consent.md)",
	"ForbiddenKeyNotFound":        "The key was destroyed at the end of its deletion window. Delete the object. Its data keys are lost.",
	"ForbiddenKeyVersionNotFound": "No such key is in the module, or it was imported from a namespace with another name, or no ImportedKey holds it. Restore the ImportedKey with `adopt`: [Backup and restore](backup-and-restore.md).",
	"RejectedDisabled":            "Set the key's `desiredState` to `Enabled`.",
	"RejectedPendingDeletion":     "Set the key's `desiredState` to `Enabled` before `status.deletionTime`.",
	"RejectedPendingImport":       "Import the key's material (again).",
	"RejectedUnavailable":         notExpected,
	"RejectedStateModifiedFailed": notExpected,
	"RejectedThrottling":          "The key has as many pairs of import parameters as it may have. Use those that are published, or wait until some have ended.",
	"InternalFailure":             "Look at the operator's log. A record of the software store that does not open is restored from a backup.",
	"ServiceUnavailableTemporary": "See that the module is up and reachable. It is tried again.",
	"DryRunOperationError":        "The export would succeed. Set `dryRun: false` to have it.",
	"ValidationError":             "A dry run: a parameter is wrong, or the key is in no state for it. The message has the error that an export would end in.",
	"AccessDeniedError":           "A dry run: consent is missing, or the key. The message has the error that an export would end in.",

	// Events.
	"KeyState":            "An ImportedKey has another state. A warning when it lost its material or was destroyed: import the same material again, if that was not meant.",
	"KeyInUse":            "A key is about to be destroyed, and DataKeys still need it. Call the deletion off (`desiredState: Enabled`) if that was not meant.",
	"KeyDestroyed":        "The object was deleted with `deletionPolicy: Delete`, and the key with it.",
	"LeftInModule":        "The object was deleted after its key store: what it had in the module is still there. To have it out, make the key store again, adopt the key, and delete that object with `deletionPolicy: Delete`.",
	"KeyStoreAvailable":   "A key store serves again. What waited for it goes on by itself.",
	"KeyStoreUnavailable": "A key store stopped serving; nothing new is imported, made or exported in it meanwhile. Its conditions say why. It is tried again by itself.",
	"RecipientChanged":    "The export was made again for another public key. See that the recipient has the private key of it; if nobody was to change it, look who did.",
	"RootKeyCreated":      "A software store began: back up the Secret that the event names.",
}
