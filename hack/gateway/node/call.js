// Sends one request with an official client, as the JSON on the standard input says, and prints {Code, Body}.
'use strict';

const input = JSON.parse(require('fs').readFileSync(0, 'utf8'));
async function kms20160120() {
  const tea = require('@alicloud/tea-typescript');
  const { RuntimeOptions } = require('@alicloud/tea-util');
  const sdk = require('@alicloud/kms20160120');
  const client = new sdk.default({
    accessKeyId: input.id, accessKeySecret: input.secret, endpoint: input.endpoint, protocol: 'https', regionId: 'keyconvoy', type: 'access_key',
  });
  const name = input.action[0].toLowerCase() + input.action.slice(1);
  if (client[name] === undefined) { // the client has no method for ExportDataKey
    return client.doRequest(input.action, 'HTTPS', 'POST', '2016-01-20', 'AK', input.parameters, null, new RuntimeOptions({}));
  }
  const request = new sdk[input.action + 'Request']();
  for (const [key, value] of Object.entries(input.parameters)) {
    request[key[0].toLowerCase() + key.slice(1)] = value;
  }
  return tea.toMap(await client[name](request));
}

async function popCore() {
  const Core = require('@alicloud/pop-core');
  const client = new Core({ accessKeyId: input.id, accessKeySecret: input.secret, endpoint: 'https://' + input.endpoint, apiVersion: '2016-01-20' });
  return client.request(input.action, input.parameters, { method: input.mode });
}

async function openapiClient() {
  const openapi = require('@alicloud/openapi-client');
  const config = { accessKeyId: input.id, accessKeySecret: input.secret, endpoint: input.endpoint, protocol: 'https', regionId: 'keyconvoy' };
  if (input.mode) {
    config.signatureAlgorithm = input.mode;
  }
  const client = new openapi.default(new openapi.Config(config));
  const params = new openapi.Params({
    action: input.action, version: '2016-01-20', protocol: 'HTTPS', pathname: '/', method: 'POST', authType: 'AK', style: 'RPC',
    reqBodyType: 'formData', bodyType: 'json',
  });
  // The EncryptionContext in a form with chunked encoding, the rest in the query.
  const { EncryptionContext, ...query } = input.parameters;
  const request = new openapi.OpenApiRequest({ query, body: EncryptionContext ? { EncryptionContext } : undefined });
  const { RuntimeOptions } = require('@alicloud/tea-util');
  return (await client.callApi(params, request, new RuntimeOptions({}))).body;
}

async function openapiCore() {
  const { default: OpenApi, $OpenApiUtil } = require('@alicloud/openapi-core');
  const $dara = require('@darabonba/typescript');
  const client = new OpenApi(new $OpenApiUtil.Config({
    accessKeyId: input.id, accessKeySecret: input.secret, endpoint: input.endpoint, protocol: 'https', regionId: 'keyconvoy',
  }));
  const params = new $OpenApiUtil.Params({
    action: input.action, version: '2016-01-20', protocol: 'HTTPS', pathname: '/', method: 'POST', authType: 'AK', style: 'RPC',
    reqBodyType: 'formData', bodyType: 'json',
  });
  return (await client.callApi(params, new $OpenApiUtil.OpenApiRequest({ query: input.parameters }), new $dara.RuntimeOptions({}))).body;
}

// It sends no nonce, and returns the body of an error as a result. It has no ExportDataKey.
async function kmsSDK() {
  const KMS = require('@alicloud/kms-sdk');
  const client = new KMS({ endpoint: input.endpoint, accessKeyId: input.id, accessKeySecret: input.secret });
  const body = await client.client[input.action]({ Action: input.action, ...input.parameters }, { timeout: 10000 });
  if (body.Code) {
    throw Object.assign(new Error(body.Message), { code: body.Code });
  }
  return body;
}

(async () => {
  const calls = { kms20160120, 'openapi-core': openapiCore, 'kms-sdk': kmsSDK, 'pop-core': popCore, 'openapi-client': openapiClient };
  try {
    const body = await calls[input.client]();
    console.log(JSON.stringify({ Code: '', Body: body }));
  } catch (error) {
    if (!error.code) {
      throw error;
    }
    // One of the clients appends "Error" to codes.
    const code = (error.data && error.data.Code) || error.code.replace(/(\w)Error$/, (all, last) => (error.code.endsWith('OperationError') ? all : last));
    console.log(JSON.stringify({ Code: code, Body: { Message: error.message } }));
  }
})();
